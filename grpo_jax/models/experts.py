"""Mixtures of experts: a router gives each token its own few of many feed-forward blocks.

With p = softmax(x R) over all E experts, in float32 at least, a token goes through the k experts of the largest p:

    y = sum over chosen e of  w_e * down_e(activation(gate_e x) * up_e x)

where w are the p of the chosen ones, divided by their sum where ``config.expert_renormalised`` (Mixtral,
arXiv:2401.04088; Qwen3-MoE with ``norm_topk_prob``). No expert is ever full: what a token gets depends on that token
alone, whatever else is in the batch. Which experts are chosen has no derivative; their weights have one, so the router
learns.

Choices that were recorded may be given in place of the own ones (routing replay, docs/mixture.md). The weights are then
those that the present router gives the recorded experts.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.config import ModelConfig
from grpo_jax.sharding import BATCH_AXES, ROLLOUT_RULES, spec
from grpo_jax.types import Array

NONE = -1
"""In place of a recorded choice: nothing is recorded, the router chooses for itself."""
Activation = Callable[[Array], Array]


class Routing(NamedTuple):
    """Where tokens go."""

    own: Array  # i32[..., k], the experts of the largest probabilities, largest first
    used: Array  # i32[..., k], those that the tokens go through
    weight: Array  # float[..., k] in at least float32, of `used`


def route(layer: Mapping[str, Array], x: Array, config: ModelConfig, recorded: Array | None = None) -> Routing:
    """The experts of tokens x [..., D]: the router's own, or those of recorded i32[..., k] where that is not `NONE`."""
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    logits = jnp.matmul(x, layer["router"], preferred_element_type=wide)
    probability = jax.nn.softmax(logits, axis=-1)
    own = jax.lax.top_k(jax.lax.stop_gradient(probability), config.experts_per_token)[1].astype(jnp.int32)
    used = own if recorded is None else jnp.where(recorded == NONE, own, recorded)
    weight = jnp.take_along_axis(probability, used, axis=-1)
    if config.expert_renormalised:
        weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
    return Routing(own, used, weight)


def mix(
    layer: Mapping[str, Array],
    x: Array,
    routing: Routing,
    config: ModelConfig,
    *,
    activation: Activation,
    mesh: jax.sharding.Mesh | None = None,
) -> Array:
    """What the experts of `routing` make of tokens x [..., D]: [..., D], in the dtype of x, added up in float32.

    Grouped or dense as ``config.expert_path`` says; where ``config.backward`` is plain always dense, as the grouped
    product has neither second derivatives nor a forward mode. On a mesh every shard groups its own rows, with all
    experts whole but for their inner width, which is split over ``tensor``.
    """
    grouped = config.expert_path == "grouped" and config.backward == "fast"
    compute = functools.partial(_grouped if grouped else dense, activation=activation)
    flat = x.reshape(-1, x.shape[-1])
    used, weight = (y.reshape(-1, y.shape[-1]) for y in (routing.used, routing.weight))
    matrices = tuple(layer[name] for name in ("expert_gate", "expert_up", "expert_down"))
    if grouped and mesh is not None:
        compute = _on_mesh(compute, mesh, config)
    return compute(flat, used, weight, *matrices).astype(x.dtype).reshape(x.shape)


def dense(
    x: Array, used: Array, weight: Array, gate: Array, up: Array, down: Array, *, activation: Activation
) -> Array:
    """The definition: every expert computes every token of x [A, D], and the weights of most are 0.

    used i32[A, k] and weight [A, k]; gate and up [E, D, F], down [E, F, D]. Returns [A, D] in at least float32.
    """
    hidden = activation(jnp.einsum("ad,edf->aef", x, gate)) * jnp.einsum("ad,edf->aef", x, up)
    each = jnp.einsum("aef,efd->aed", hidden, down)
    share = jnp.sum(jax.nn.one_hot(used, gate.shape[0], dtype=weight.dtype) * weight[:, :, None], axis=1)
    return jnp.einsum("aed,ae->ad", each.astype(weight.dtype), share)


def _grouped(
    x: Array, used: Array, weight: Array, gate: Array, up: Array, down: Array, *, activation: Activation
) -> Array:
    """`dense`, where an expert computes the tokens that chose it: they are sorted by expert first, and back at the end.

    Both ways are permutations, so that no two numbers are added in an order that a device chooses.
    """
    (count, chosen), experts = used.shape, gate.shape[0]
    flat = used.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=jnp.int32), unique_indices=True)
    sizes = jnp.sum(flat[:, None] == jnp.arange(experts, dtype=flat.dtype)[None], axis=0, dtype=jnp.int32)
    rows = jnp.broadcast_to(x[:, None], (count, chosen, x.shape[1])).reshape(-1, x.shape[1])
    rows = rows.at[order].get(unique_indices=True)
    hidden = activation(product(rows, gate, sizes)) * product(rows, up, sizes)
    found = product(hidden, down, sizes).at[place].get(unique_indices=True)
    return jnp.sum(found.reshape(count, chosen, -1).astype(weight.dtype) * weight[:, :, None], axis=1)


@jax.custom_vjp
def product(rows: Array, matrices: Array, sizes: Array) -> Array:
    """rows [M, D], the first sizes[0] times matrices[0], the next sizes[1] times matrices[1], ...: [M, F].

    matrices [E, D, F], sizes i32[E] with the sum M. The derivative is written out, so that it can be vectorised over.
    """
    return _each(rows, matrices, sizes)


def _product_forward(rows: Array, matrices: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _each(rows, matrices, sizes), (rows, matrices, sizes)


def _product_backward(saved: tuple[Array, Array, Array], slope: Array) -> tuple[Array, Array, None]:
    rows, matrices, sizes = saved
    return _each(slope, jnp.swapaxes(matrices, 1, 2), sizes), _outer(rows, slope, sizes), None


product.defvjp(_product_forward, _product_backward)


@jax.custom_batching.sequential_vmap
def _each(rows: Array, matrices: Array, sizes: Array) -> Array:
    return jax.lax.ragged_dot(rows, matrices, sizes)


@jax.custom_batching.sequential_vmap
def _outer(rows: Array, slope: Array, sizes: Array) -> Array:
    """``rows^T slope`` of every group: [M, D] and [M, F] -> [E, D, F]."""
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(rows, slope, sizes, numbers)


def _on_mesh(compute: Callable[..., Array], mesh: jax.sharding.Mesh, config: ModelConfig) -> Callable[..., Array]:
    """`compute` where every shard has the experts to itself and sorts the rows it holds.

    Nothing is sent but the sum over ``tensor``, between whose shards the inner width of the experts is divided.
    """
    wide = (config.experts, config.width, config.expert_hidden)
    inner = spec(("experts", "embed", "mlp"), ROLLOUT_RULES, mesh, wide)
    outer = spec(("experts", "mlp", "embed"), ROLLOUT_RULES, mesh, (wide[0], wide[2], wide[1]))
    rows = spec(("prompts", None), ROLLOUT_RULES, mesh)
    split = inner[2] is not None

    def local(x: Array, used: Array, weight: Array, *matrices: Array) -> Array:
        # A derivative is that of one shard until it is added up, here and not within `product`.
        matrices = jax.lax.pcast(matrices, BATCH_AXES, to="varying")
        if not split:
            return compute(x, used, weight, *matrices)
        x, used, weight = jax.lax.pcast((x, used, weight), "tensor", to="varying")
        return jax.lax.psum(compute(x, used, weight, *matrices), "tensor")

    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, rows, inner, inner, outer), out_specs=rows)
