"""The pieces of a layer, by hand numbers and by the rule JAX derives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models import ModelConfig, layers

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
