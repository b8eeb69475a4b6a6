"""The scalars that describe a decoder. Everything else about it is in its parameters."""

import dataclasses
import typing

import jax.numpy as jnp

Activation = typing.Literal["silu", "gelu", "relu"]
Remat = typing.Literal["none", "dots", "full"]
Backward = typing.Literal["fast", "plain"]
Critic = typing.Literal["head", "tower"]
_CHOICES = {"activation": Activation, "remat": Remat, "backward": Backward}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: pre-RMSNorm, no biases, rotary or learned positions or both, grouped queries.

    Hashable and free of arrays, so that it can be a static argument. The defaults of the three `*_std` suit an untied
    model of some ten to some hundred units; a tied one wants an `embed_std` of about ``width ** -0.5``.

    Raises ValueError for a combination that describes no model.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    activation: Activation = "gelu"  # gelu is the tanh approximation
    gated: bool = False  # True: down(activation(gate x) * up x); False: down(activation(up x))
    tied: bool = False  # True: the embedding is the output matrix too
    positions: int = 0  # rows of the table of learned absolute positions; 0: none
    rope_theta: float = 0.0  # base of the rotary frequencies; 0: none
    norm_eps: float = 1e-6
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    stacked: bool = False  # True: layers on a leading axis and a scan; False: one after the other, faster when shallow
    remat: Remat = "none"  # what the backward pass computes again: nothing, all but the products, a whole layer
    backward: Backward = "fast"  # fast: written out; plain: derived by JAX, so forward mode and second derivatives work
    embed_std: float = 0.5  # of the embedding and of the position table
    head_std: float = 0.02
    weight_std: float = 0.0  # of the matrices of a layer; 0: (inputs of the matrix) ** -0.5
    critic: Critic | None = None  # values come from a head on the policy's last layer, or on a decoder of their own
    critic_detached: bool = False  # True: a head on the policy's last layer reads it and does not change it

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"ModelConfig.{name} is {getattr(self, name)}; allowed are positive whole numbers")
        for name in ("positions", "rope_theta", "embed_std", "head_std", "weight_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"ModelConfig.{name} is {getattr(self, name)}; allowed is 0 or more")
        for name, choices in _CHOICES.items():
            allowed = typing.get_args(choices)
            if getattr(self, name) not in allowed:
                raise ValueError(f"ModelConfig.{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.critic not in (None, *typing.get_args(Critic)):
            raise ValueError(
                f"ModelConfig.critic is {self.critic!r}; allowed are None, {', '.join(typing.get_args(Critic))}"
            )
        if self.critic_detached and self.critic != "head":
            raise ValueError(
                f"ModelConfig.critic_detached is True and critic {self.critic!r}; only a value head on the policy's own"
                " layers can be detached from them: set critic='head', or critic_detached=False"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"ModelConfig.heads is {self.heads} and kv_heads {self.kv_heads}; every key/value head serves the same "
                f"number of query heads, so kv_heads must divide heads: {_divisors(self.heads)}"
            )
        if self.rope_theta and self.head_width % 2:
            raise ValueError(
                f"ModelConfig.head_width is {self.head_width}; rotary positions turn pairs of numbers, so it must be "
                f"even: take {self.head_width + 1}, or rope_theta=0"
            )
        for name in ("param_dtype", "compute_dtype"):
            _check_float(name, getattr(self, name))

    @property
    def repeats(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


def _check_float(name: str, dtype: str) -> None:
    try:
        valid = isinstance(dtype, str) and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"ModelConfig.{name} is {dtype!r}; allowed are names of float types: float32, bfloat16, ...")
