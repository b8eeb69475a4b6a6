"""The pieces of a decoder layer: norm, matrix products, rotation, feed-forward. Leading dimensions are free.

Whether an operation happens is decided by the presence of its parameters; the config only holds scalars.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from grpo_jax.models import experts, rope
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.lora import A, B
from grpo_jax.types import Array

Rotation = tuple[Array, Array]
"""Cosine and sine, as `rotate` reads them."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


@jax.custom_vjp
def _product(x: Array, weight: Array) -> Array:
    """x [A, D] times weight [D, F], with the two products of the backward pass written out.

    The transpose rule of JAX asks for ``(dy^T x)^T``, for which XLA on a CPU copies its large operands: 2.3 times the
    time of the product itself.
    """
    return x @ weight


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = saved
    if x.shape[1] <= dy.shape[1]:
        return dy @ weight.T, x.T @ dy
    return dy @ weight.T, jax.lax.optimization_barrier(dy.T @ x).T


_product.defvjp(_product_forward, _product_backward)


def linear(x: Array, weight: Array, config: ModelConfig, *, contract: int = 1) -> Array:
    """x [..., A] times weight [A, B], the last `contract` dimensions of x with the first of weight: [..., B].

    A and B may stand for several dimensions. Everything is done on matrices, which is what CPU libraries are fast at.
    """
    outputs = weight.shape[contract:]
    weight = weight.reshape(-1, math.prod(outputs))
    leading = x.shape[: x.ndim - contract]
    x = x.reshape(-1, weight.shape[0])
    y = _product(x, weight) if config.backward == "fast" else x @ weight
    return y.reshape(*leading, *outputs)


def rms_norm(x: Array, scale: Array, config: ModelConfig) -> Array:
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last dimension, in at least float32 (arXiv:1910.07467).

    With an offset ``(offset + scale)`` takes the place of ``scale``, and what is narrower than float32 is rounded after
    that product, not before it: so does the Gemma that was trained.
    """
    wide = x.astype(accumulator(x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    if config.norm_offset:
        scale = jnp.expand_dims(config.norm_offset + scale.astype(wide.dtype), range(x.ndim - 1))
        return (wide * inverse * scale).astype(x.dtype)
    return (wide * inverse).astype(x.dtype) * jnp.expand_dims(scale, range(x.ndim - 1))


def rotations(position: Array, config: ModelConfig, dtype: jnp.dtype) -> Callable[[int | Array], Rotation | None]:
    """The rotations at position i32[...] of a layer, as a function of its window, which alone decides about them."""
    everywhere = angles(position, config, dtype)
    if not config.local_rope_theta:
        return lambda window: everywhere
    local = angles(position, dataclasses.replace(config, rope_theta=config.local_rope_theta, rope_scaling=None), dtype)

    def of(window: int | Array) -> Rotation | None:
        if isinstance(window, int):
            return local if window else everywhere
        return jax.tree.map(lambda near, far: jnp.where(window > 0, near, far), local, everywhere)

    return of


def angles(position: Array, config: ModelConfig, dtype: jnp.dtype) -> Rotation | None:
    """Cosine and sine [..., 1, C/2] of the rotations at position i32[...]; None for a model without them."""
    if not config.rope_theta:
        return None
    frequency, factor = _frequencies(config)
    angle = position.astype(jnp.float32)[..., None, None] * jnp.expand_dims(frequency, range(position.ndim + 1))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    if factor != 1:
        cosine, sine = factor * cosine, factor * sine
    return jnp.stack([cosine, cosine], -2).astype(dtype), jnp.stack([-sine, sine], -2).astype(dtype)


def _frequencies(config: ModelConfig) -> tuple[Array, float]:
    """f32[C/2] and the factor of cosines and sines.

    A model of a family has the numbers that its reference computes, to the last bit: a position of ten thousand
    multiplies what is off in a frequency.
    """
    if config.family is not None or config.rope_scaling is not None:
        frequency, factor = rope.frequencies(config.rope_theta, config.head_width, config.rope_scaling)
        return jnp.asarray(frequency), factor
    half = config.head_width // 2
    return config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half), 1.0


def rotate(x: Array, rotation: Rotation | None) -> Array:
    """x [..., heads, C] with entry i and entry i + C/2 turned by the i-th angle (arXiv:2104.09864)."""
    if rotation is None:
        return x
    cosine, sine = rotation
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * cosine + halves[..., ::-1, :] * sine).reshape(x.shape)


def project(layer: Mapping[str, Array], name: str, x: Array, config: ModelConfig, *, contract: int = 1) -> Array:
    """x times the matrix `name` of a layer, as `linear`, plus ``<name>_bias`` where the layer has one.

    Where the matrix has an adapter, what that says is added (`models.lora`).
    """
    y = linear(x, layer[name], config, contract=contract)
    if name + A in layer:
        y = y + adapted(layer, name, x, config, contract=contract)
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))


def adapted(params: Mapping[str, Array], name: str, x: Array, config: ModelConfig, *, contract: int = 1) -> Array:
    """``s (x A) B`` of the adapter of the matrix `name`, for x as in `linear`.

    Raises ValueError where the config does not describe adapters.
    """
    if config.lora is None:
        raise ValueError(
            f"model.lora: got None with parameters that have an adapter of {name}, allowed is the LoRA that they were"
            " made with: give the model that, or merge them (models.merged)"
        )
    low = linear(x, params[name + A], config, contract=contract)
    return linear(low * config.lora.scale, params[name + B], config)


def key_value(layer: Mapping[str, Array], normed: Array, rotation: Rotation | None, config: ModelConfig):
    """Keys and values [..., J, C] of the normed input [..., D]."""
    key = normed_if(layer, "key_norm", project(layer, "key", normed, config), config)
    return rotate(key, rotation), project(layer, "value", normed, config)


def query(layer: Mapping[str, Array], normed: Array, rotation: Rotation | None, config: ModelConfig) -> Array:
    """Queries [..., H, C] of the normed input [..., D], scaled already, by C^-1/2 where the config says nothing."""
    found = normed_if(layer, "query_norm", project(layer, "query", normed, config), config)
    return rotate(found, rotation) * (config.query_scale or config.head_width**-0.5)


def close(layer: Mapping[str, Array], x: Array, attended: Array, config: ModelConfig, mesh=None) -> Array:
    """The rest of a layer: x [..., D] plus what attention [..., H, C] found, then the feed-forward block or experts."""
    return close_routed(layer, x, attended, config, mesh=mesh)[0]


def close_routed(
    layer: Mapping[str, Array],
    x: Array,
    attended: Array,
    config: ModelConfig,
    *,
    recorded: Array | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Array, Array | None]:
    """`close`, and which experts i32[..., k] the router of the layer chooses; None in a layer without one.

    Where recorded i32[..., k] holds choices, tokens go through these instead.
    """
    found = project(layer, "output", attended, config, contract=2)
    x = x + normed_if(layer, "attention_post_norm", found, config)
    normed, own = rms_norm(x, layer["mlp_norm"], config), None
    if "router" in layer:
        routing = experts.route(layer, normed, config, recorded)
        activation = _ACTIVATIONS[config.activation]
        found, own = experts.mix(layer, normed, routing, config, activation=activation, mesh=mesh), routing.own
    else:
        found = feed_forward(layer, normed, config)
    return x + normed_if(layer, "mlp_post_norm", found, config), own


def feed_forward(layer: Mapping[str, Array], normed: Array, config: ModelConfig) -> Array:
    """What the feed-forward block adds to the residual stream, [..., D], for its normed input [..., D]."""
    hidden = project(layer, "up", normed, config)
    activation = _ACTIVATIONS[config.activation]
    hidden = activation(project(layer, "gate", normed, config)) * hidden if "gate" in layer else activation(hidden)
    return project(layer, "down", hidden, config)


def normed_if(layer: Mapping[str, Array], name: str, x: Array, config: ModelConfig) -> Array:
    """x through the norm `name` of a layer, where the layer has one."""
    return rms_norm(x, layer[name], config) if name in layer else x


def embed(params: Mapping, tokens: Array, position: Array, config: ModelConfig) -> Array:
    """Vectors [..., D] of tokens i32[...] at position i32[...].

    The factor of a Gemma is rounded to the dtype of the computation first, as in the model that was trained.
    """
    x = params["embed"][tokens]
    if config.embed_scale:
        x = x * jnp.asarray(config.embed_scale, x.dtype)
    return x + params["position"][position] if "position" in params else x


def unembed(params: Mapping, x: Array, config: ModelConfig) -> Array:
    """Logits [..., V] of the output x [..., D] of the last layer, in ``config.logprob_dtype``.

    Summed and capped in at least float32, whatever that is; those of a computation in float64 stay so. Raises
    ValueError for a float64 that JAX does not have.
    """
    weight = params["head"] if "head" in params else params["embed"].T
    normed = rms_norm(x, params["norm"], config)
    wide = accumulator(x.dtype)
    logits = jnp.matmul(normed, weight, preferred_element_type=wide)
    if "head" + A in params:
        logits = logits + adapted(params, "head", normed, config).astype(wide)
    logits = capped(logits, config.logit_cap)
    if wide == jnp.float64:
        return logits
    dtype = jax.dtypes.canonicalize_dtype(config.logprob_dtype)
    if dtype != jnp.dtype(config.logprob_dtype):
        raise ValueError(
            "ModelConfig.logprob_dtype is 'float64', which JAX only has with jax_enable_x64; allowed without it are"
            " 'float32', 'bfloat16', 'float16': take float32, or set JAX_ENABLE_X64=1"
        )
    return logits.astype(dtype)


def capped(x: Array, cap: float) -> Array:
    """``cap tanh(x / cap)``, which stays between -cap and cap; x for a cap of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which numbers of `dtype` are added up: float32, or float64 for itself."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def cast(tree, config: ModelConfig):
    """Parameters in the dtype of the computation; float64 stays, so that tests can look closer."""
    dtype = jnp.dtype(config.compute_dtype)
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.float64 else leaf.astype(dtype), tree)
