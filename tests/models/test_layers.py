"""The pieces of a layer, by hand numbers and by the rule JAX derives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import ModelConfig, RopeScaling, layers

CONFIG = ModelConfig(
    vocab=2, width=6, layers=1, heads=2, kv_heads=1, head_width=4, hidden=3, rope_theta=100.0, norm_eps=0
)
PLAIN = dataclasses.replace(CONFIG, backward="plain")


def test_the_written_out_gradient_of_a_product_is_the_derived_one():
    """More inputs than outputs, fewer, and two dimensions contracted: heads and their width."""
    key = jax.random.key(0)
    cases = {"tall": ((5, 6), (6, 3), 1), "wide": ((5, 6), (6, 2, 4), 1), "heads": ((2, 5, 2, 4), (2, 4, 6), 2)}

    def gradients(name, config):
        x, weight, contract = cases[name]
        arrays = jax.random.normal(key, x), jax.random.normal(jax.random.fold_in(key, 1), weight)

        def value(x, weight):
            y = layers.linear(x, weight, config, contract=contract)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(value, argnums=(0, 1), has_aux=True)(*arrays), jnp.tensordot(*arrays, axes=contract)

    found = jax.jit(lambda: {name: (gradients(name, CONFIG), gradients(name, PLAIN)) for name in cases})()
    for ((gradient, y), product), ((expected, _), _) in found.values():
        np.testing.assert_allclose(y, product, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)


def test_the_norm_divides_by_the_root_mean_square():
    """(3 4): mean square (9 + 16) / 2 = 12.5; scales 1 and 2."""
    found = layers.rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 2.0]), CONFIG)
    np.testing.assert_allclose(found, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)


def test_rotation_turns_the_pairs_by_the_angle_of_their_position():
    """C = 4, base 100: entry 0 and 2 turn by 1 a position, 1 and 3 by 100^(-1/2) = 0.1. Position 3, (1 1 0 0)."""
    rotation = layers.angles(jnp.array([3]), CONFIG, jnp.float32)
    found = layers.rotate(jnp.array([[[1.0, 1.0, 0.0, 0.0]]]), rotation)
    np.testing.assert_allclose(found, [[[np.cos(3), np.cos(0.3), np.sin(3), np.sin(0.3)]]], atol=1e-6)
    assert layers.angles(jnp.array([3]), dataclasses.replace(CONFIG, rope_theta=0.0), jnp.float32) is None


def test_parameters_are_cast_to_the_computation_and_float64_stays():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    with jax.enable_x64(True):
        found = layers.cast({"narrow": jnp.ones(2, jnp.float32), "wide": jnp.ones(2, jnp.float64)}, config)
    assert found["narrow"].dtype == jnp.bfloat16
    assert found["wide"].dtype == jnp.float64


def test_a_product_adds_the_bias_of_its_name_where_there_is_one():
    """(1 2) times the columns (3 5) and (4 6) is (13 16); heads of width 1 with biases 10 and 20."""
    x, weight = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]]).reshape(2, 2, 1)
    layer = {"key": weight, "value": weight, "value_bias": jnp.array([[10.0], [20.0]])}
    np.testing.assert_array_equal(layers.project(layer, "key", x, CONFIG), [[[13], [16]]])
    np.testing.assert_array_equal(layers.project(layer, "value", x, CONFIG), [[[23], [36]]])


def test_the_offset_of_a_norm_is_added_to_its_scale_before_anything_is_rounded():
    """(3 4) over its root mean square, times 1 + 0.01 and 1 + 2. In bfloat16 1.01 itself would be 1.0078."""
    config = dataclasses.replace(CONFIG, norm_offset=1.0)
    scale = jnp.array([0.01, 2.0], jnp.bfloat16)
    expected = [[3 / 12.5**0.5 * 1.01, 4 / 12.5**0.5 * 3]]
    found = layers.rms_norm(jnp.array([[3.0, 4.0]], jnp.bfloat16), scale, config)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, jnp.asarray(expected).astype(jnp.bfloat16))


def test_queries_and_keys_are_normed_before_they_are_rotated():
    """Query (3 4 0 0), mean square 25 / 4: (1.2 1.6 0 0), scales 1 2 1 1, turned by 1 and 0.1, times 1/2."""
    layer = {"query": jnp.eye(6, 4).reshape(6, 1, 4), "query_norm": jnp.array([1.0, 2.0, 1.0, 1.0])}
    x = jnp.array([[3.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    found = layers.query(layer, x, layers.angles(jnp.array([1]), CONFIG, jnp.float32), CONFIG)
    expected = [[[0.6 * np.cos(1), 1.6 * np.cos(0.1), 0.6 * np.sin(1), 1.6 * np.sin(0.1)]]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    scaled = dataclasses.replace(CONFIG, query_scale=2.0)
    np.testing.assert_allclose(layers.query(layer, x, None, scaled), [[[2.4, 6.4, 0, 0]]], rtol=1e-6)


def test_what_a_layer_adds_is_normed_where_it_has_norms_for_it():
    """Attention finds (3 4), the feed-forward block (2 relu(x)): both divided by their root mean squares."""
    config = dataclasses.replace(CONFIG, width=2, activation="relu")
    eye = jnp.eye(2)
    layer = {"output": eye[None], "mlp_norm": jnp.ones(2), "up": eye, "down": 2 * eye}
    norms = {"attention_post_norm": jnp.ones(2), "mlp_post_norm": jnp.ones(2)}
    attended, x = jnp.array([[[3.0, 4.0]]]), jnp.zeros((1, 2))
    unit = np.array([[3.0, 4.0]]) / 12.5**0.5
    np.testing.assert_allclose(layers.close(layer, x, attended, config), [[3, 4]] + 2 * unit, rtol=1e-6)
    np.testing.assert_allclose(layers.close({**layer, **norms}, x, attended, config), 2 * unit, rtol=1e-6)


def test_the_factor_of_embeddings_is_rounded_to_their_dtype_first():
    """sqrt(6) = 2.449 is 2.453125 in bfloat16, times 3 is 7.359375, which rounds to 7.375; 7.348 would be 7.34375."""
    config = dataclasses.replace(CONFIG, embed_scale=6**0.5)
    params = {"embed": jnp.full((2, 6), 3.0, jnp.bfloat16)}
    nothing = jnp.zeros(1, jnp.int32)
    np.testing.assert_array_equal(layers.embed(params, nothing, nothing, config), jnp.full((1, 6), 7.375, jnp.bfloat16))
    assert float(jnp.bfloat16(3 * 6**0.5)) == 7.34375


def test_logits_are_capped_and_come_in_their_own_dtype():
    """(1 -1) normed is itself; times 40 and 2, and with a cap of 30: 30 tanh(40 / 30), 30 tanh(-2 / 30)."""
    params = {"norm": jnp.ones(2), "head": jnp.array([[40.0, 0.0], [0.0, 2.0]])}
    x, config = jnp.array([[1.0, -1.0]]), dataclasses.replace(CONFIG, width=2, logit_cap=30.0)
    expected = [[30 * np.tanh(4 / 3), 30 * np.tanh(-1 / 15)]]
    np.testing.assert_allclose(layers.unembed(params, x, config), expected, rtol=1e-6)
    narrow = layers.unembed(params, x, dataclasses.replace(config, logprob_dtype="bfloat16"))
    np.testing.assert_array_equal(narrow, jnp.asarray(expected).astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="logprob_dtype is 'float64', which JAX only has with jax_enable_x64"):
        layers.unembed(params, x, dataclasses.replace(config, logprob_dtype="float64"))


def test_layers_with_a_window_turn_by_a_base_of_their_own_and_unscaled():
    """C = 4: base 100 halved, 1/2 and 0.05 a position, or base 16: 1 and 1/4. The window may be data."""
    scaling = RopeScaling(kind="linear", factor=2.0)
    config = dataclasses.replace(CONFIG, rope_scaling=scaling, windows=(3,), local_rope_theta=16.0)
    rotations = layers.rotations(jnp.array([2]), config, jnp.float32)
    for window, expected in ((0, [1, 0.1]), (3, [2, 0.5])):
        for given in (window, jnp.int32(window)):
            rotation = rotations(given)
            assert rotation is not None
            np.testing.assert_allclose(rotation[0][0, 0, 0], np.cos(expected), rtol=1e-6)
            np.testing.assert_allclose(rotation[1][0, 0, 1], np.sin(expected), rtol=1e-6)


def test_the_factor_of_a_scaling_multiplies_cosines_and_sines():
    scaling = RopeScaling(kind="yarn", factor=4.0, original_positions=8, attention_factor=1.5)
    rotation = layers.angles(jnp.array([0]), dataclasses.replace(CONFIG, rope_scaling=scaling), jnp.float32)
    assert rotation is not None
    np.testing.assert_array_equal(rotation[0], np.full((1, 1, 2, 2), 1.5))
