"""Routers and experts: numbers by hand, a plain twin in NumPy, and the laws of a mixture that never fills up."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import ModelConfig, experts, table
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Array

A, D, F, E, K = 16, 4, 6, 5, 2


def config(**changes) -> ModelConfig:
    given = {"vocab": 3, "width": D, "layers": 1, "heads": 1, "kv_heads": 1, "head_width": 4, "hidden": 8}
    mixture = {"gated": True, "experts": E, "experts_per_token": K, "expert_hidden": F}
    return ModelConfig(**{**given, **mixture, **changes})


CONFIG = config()
LAYER = table.init(jax.random.key(0), CONFIG)["layers"]["0"]
LAYER = {name: value for name, value in LAYER.items() if name == "router" or name.startswith("expert")}
X = jax.random.normal(jax.random.key(1), (A, D))


def block(layer: Mapping[str, Array], x: Array, recorded: Array | None = None, *, config=CONFIG, mesh=None) -> Array:
    routing = experts.route(layer, x, config, recorded)
    return experts.mix(layer, x, routing, config, activation=jax.nn.silu, mesh=mesh)


def slopes(layer: Mapping[str, Array], x: Array, recorded: Array | None = None, *, config=CONFIG, mesh=None):
    """Output, and the gradients of a sum in which every number of it counts differently."""

    def loss(layer: Mapping[str, Array], x: Array) -> tuple[Array, Array]:
        y = block(layer, x, recorded, config=config, mesh=mesh)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)


def assert_close(a, b, atol: float = 2e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize("path", ["grouped", "dense"])
def test_by_hand(path, renormalised):
    shape = {"width": 1, "experts": 3, "expert_hidden": 1, "expert_path": path, "expert_renormalised": renormalised}
    small = config(**shape)
    layer = {
        "router": jnp.log(jnp.array([[1.0, 2.0, 5.0]])),  # x = 1: p = 1/8, 2/8, 5/8
        "expert_gate": jnp.array([[[1.0]], [[2.0]], [[3.0]]]),
        "expert_up": jnp.array([[[1.0]], [[10.0]], [[1.0]]]),
        "expert_down": jnp.array([[[100.0]], [[1.0]], [[2.0]]]),
    }
    routing = experts.route(layer, jnp.ones((1, 1)), small)
    np.testing.assert_array_equal(routing.own, [[2, 1]])
    y = experts.mix(layer, jnp.ones((1, 1)), routing, small, activation=jax.nn.relu)
    # Expert 1 makes 2 * 10 * 1 = 20 of it, expert 2 makes 3 * 1 * 2 = 6.
    expected = (2 * 20 + 5 * 6) / 7 if renormalised else (2 * 20 + 5 * 6) / 8
    np.testing.assert_allclose(y, [[expected]], rtol=1e-6)


def twin(layer: Mapping[str, Array], x: Array, *, renormalised: bool) -> np.ndarray:
    """Token by token and expert by expert, in float64."""
    m = {name: np.asarray(value, np.float64) for name, value in layer.items()}
    rows = []
    for token in np.asarray(x, np.float64):
        p = np.exp(token @ m["router"])
        p /= p.sum()
        chosen = np.argsort(-p)[:K]
        w = p[chosen] / (p[chosen].sum() if renormalised else 1)
        row = np.zeros(D)
        for e, share in zip(chosen, w, strict=True):
            gate = token @ m["expert_gate"][e]
            row += share * ((gate / (1 + np.exp(-gate)) * (token @ m["expert_up"][e])) @ m["expert_down"][e])
        rows.append(row)
    return np.stack(rows)


@functools.cache
def alone():
    """Value and gradients of the definition, on one device."""
    return jax.jit(functools.partial(slopes, config=config(expert_path="dense")))(LAYER, X)


def test_the_definition_is_that_of_the_twin():
    np.testing.assert_allclose(alone()[1], twin(LAYER, X, renormalised=True), atol=1e-6)
    raw = jax.jit(functools.partial(block, config=config(expert_renormalised=False)))(LAYER, X)
    np.testing.assert_allclose(raw, twin(LAYER, X, renormalised=False), atol=1e-6)


def test_grouped_is_dense_in_value_and_gradients():
    assert_close(jax.jit(slopes)(LAYER, X), alone())


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "tensor": 4}, marks=pytest.mark.slow),  # 4 does not divide the width 6
    ],
    ids=lambda shape: "x".join(map(str, shape.values())),
)
def test_eight_devices_equal_one(shape):
    assert_close(jax.jit(functools.partial(slopes, mesh=make_mesh(shape)))(LAYER, X), alone())


def test_gradients_of_several_batches_at_once_are_those_of_each():
    """What compares the gradients of prompts vectorises over them."""
    batches = X.reshape(2, A // 2, D)

    def gradient(layer: Mapping[str, Array], x: Array) -> Mapping[str, Array]:
        return jax.grad(lambda layer: jnp.sum(jnp.sin(block(layer, x))))(layer)

    together = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(LAYER, batches)
    apart = jax.jit(lambda layer, batches: jax.lax.map(functools.partial(gradient, layer), batches))
    assert_close(together, apart(LAYER, batches))


def test_the_plain_backward_pass_can_be_derived_again_and_the_same_way_forward():
    plain = config(backward="plain")

    def along(t: Array) -> Array:
        moved = {**LAYER, "expert_up": LAYER["expert_up"] * (1 + t)}
        return jnp.sum(block(moved, X, config=plain))

    # The output is linear in one of the matrices: its slope along it is the output, its second derivative is 0.
    zero = jnp.zeros(())
    found = jax.jit(lambda t: (along(t), jax.jvp(along, (t,), (t + 1,))[1], jax.grad(jax.grad(along))(t)))(zero)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], 0, atol=1e-6)


@pytest.mark.parametrize("path", ["grouped", "dense"])
def test_gradients_reach_the_router_and_only_the_experts_that_were_chosen(path):
    only = jnp.broadcast_to(jnp.array([3, 1], jnp.int32), (A, K))
    (gradient, _), _ = jax.jit(functools.partial(slopes, config=config(expert_path=path)))(LAYER, X, only)
    for name in ("expert_gate", "expert_up", "expert_down"):
        moved = np.abs(np.asarray(gradient[name])).max(axis=(1, 2))
        np.testing.assert_array_equal(moved > 0, [False, True, False, True, False])
    # Renormalised, the weights of two experts depend on the difference of their logits alone.
    router = np.asarray(gradient["router"])
    np.testing.assert_allclose(router[:, [0, 2, 4]], 0, atol=1e-6)
    assert np.abs(router[:, [1, 3]]).min() > 1e-3


def test_recorded_choices_are_used_where_there_are_some():
    run = jax.jit(block)
    own = experts.route(LAYER, X, CONFIG).own
    plain = run(LAYER, X)
    np.testing.assert_array_equal(run(LAYER, X, own), plain)
    np.testing.assert_array_equal(run(LAYER, X, jnp.full_like(own, experts.NONE)), plain)
    foreign = jnp.where((jnp.arange(A) < 4)[:, None], (own + 1) % E, experts.NONE).astype(jnp.int32)
    replayed = np.asarray(run(LAYER, X, foreign))
    assert (np.abs(replayed - plain).max(axis=1) > 1e-4).tolist() == [True] * 4 + [False] * (A - 4)
    p = np.asarray(jax.nn.softmax(X @ LAYER["router"], axis=-1))
    weight = np.take_along_axis(p[:4], np.asarray(foreign[:4]), axis=1)
    found = experts.route(LAYER, X, CONFIG, foreign)
    np.testing.assert_allclose(found.weight[:4], weight / weight.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(found.own, own)


def test_no_expert_is_ever_full_and_no_row_influences_another():
    """Alone, or beside rows that all want the same expert: a token gets the same."""
    crowd = jnp.broadcast_to(X[:1], (A, D)).at[5].set(X[1])
    run = jax.jit(block)
    alone = run(LAYER, X)
    np.testing.assert_allclose(run(LAYER, crowd)[5], alone[1], atol=1e-6)
    np.testing.assert_allclose(run(LAYER, crowd)[7], alone[0], atol=1e-6)
    of_one = jax.jit(jax.grad(lambda x: jnp.sum(block(LAYER, x)[5])))(X)
    np.testing.assert_array_equal(np.delete(of_one, 5, axis=0), 0)
    assert np.abs(of_one[5]).max() > 1e-3


def test_weights_are_float32_in_a_bfloat16_computation():
    layer, x = jax.tree.map(lambda y: y.astype(jnp.bfloat16), (LAYER, X))
    assert jax.eval_shape(lambda: experts.route(layer, x, CONFIG)).weight.dtype == jnp.float32
    y = jax.jit(block)(layer, x)
    assert y.dtype == jnp.bfloat16
    wide = jax.tree.map(lambda y: y.astype(jnp.float32), (layer, x))
    expected = jax.jit(block)(*wide)
    # bfloat16 has 8 bits: three products of some terms each are right to a few hundredths of the largest.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03 * float(jnp.abs(expected).max()))
