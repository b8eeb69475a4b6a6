"""The pieces of a decoder layer: norm, matrix products, rotation, feed-forward. Leading dimensions are free.

Whether an operation happens is decided by the presence of its parameters; the config only holds scalars.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array

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
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last dimension, in at least float32 (arXiv:1910.07467)."""
    wide = x.astype(accumulator(x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    return (wide * inverse).astype(x.dtype) * jnp.expand_dims(scale, range(x.ndim - 1))


def angles(position: Array, config: ModelConfig, dtype: jnp.dtype) -> tuple[Array, Array] | None:
    """Cosine and sine [..., 1, C/2] of the rotations at position i32[...]; None for a model without them."""
    if not config.rope_theta:
        return None
    half = config.head_width // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None, None] * jnp.expand_dims(frequency, range(position.ndim + 1))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cosine, cosine], -2).astype(dtype), jnp.stack([-sine, sine], -2).astype(dtype)


def rotate(x: Array, rotation: tuple[Array, Array] | None) -> Array:
    """x [..., heads, C] with entry i and entry i + C/2 turned by the i-th angle (arXiv:2104.09864)."""
    if rotation is None:
        return x
    cosine, sine = rotation
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * cosine + halves[..., ::-1, :] * sine).reshape(x.shape)


def key_value(layer: Mapping[str, Array], normed: Array, rotation: tuple | None, config: ModelConfig):
    """Keys and values [..., J, C] of the normed input [..., D]."""
    key = rotate(linear(normed, layer["key"], config), rotation)
    return key, linear(normed, layer["value"], config)


def query(layer: Mapping[str, Array], normed: Array, rotation: tuple | None, config: ModelConfig) -> Array:
    """Queries [..., H, C] of the normed input [..., D], scaled by C^-1/2 already."""
    return rotate(linear(normed, layer["query"], config), rotation) * config.head_width**-0.5


def close(layer: Mapping[str, Array], x: Array, attended: Array, config: ModelConfig) -> Array:
    """The rest of a layer: x [..., D] plus what attention [..., H, C] found, then the feed-forward block."""
    x = x + linear(attended, layer["output"], config, contract=2)
    normed = rms_norm(x, layer["mlp_norm"], config)
    hidden = linear(normed, layer["up"], config)
    activation = _ACTIVATIONS[config.activation]
    hidden = activation(linear(normed, layer["gate"], config)) * hidden if "gate" in layer else activation(hidden)
    return x + linear(hidden, layer["down"], config)


def embed(params: Mapping, tokens: Array, position: Array) -> Array:
    """Vectors [..., D] of tokens i32[...] at position i32[...]."""
    x = params["embed"][tokens]
    return x + params["position"][position] if "position" in params else x


def unembed(params: Mapping, x: Array, config: ModelConfig) -> Array:
    """Logits [..., V] of the output x [..., D] of the last layer, summed in at least float32."""
    weight = params["head"] if "head" in params else params["embed"].T
    normed = rms_norm(x, params["norm"], config)
    return jnp.matmul(normed, weight, preferred_element_type=accumulator(x.dtype))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which numbers of `dtype` are added up: float32, or float64 for itself."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def cast(tree, config: ModelConfig):
    """Parameters in the dtype of the computation; float64 stays, so that tests can look closer."""
    dtype = jnp.dtype(config.compute_dtype)
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.float64 else leaf.astype(dtype), tree)
