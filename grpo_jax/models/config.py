"""The scalars that describe a decoder. Everything else about it is in its parameters."""

import dataclasses
import typing

import jax.numpy as jnp

from grpo_jax.models.lora import LoRA
from grpo_jax.models.rope import RopeScaling

Activation = typing.Literal["silu", "gelu", "gelu_exact", "relu"]
Remat = typing.Literal["none", "dots", "full"]
Backward = typing.Literal["fast", "plain"]
Critic = typing.Literal["head", "tower"]
ExpertPath = typing.Literal["grouped", "dense"]
_CHOICES = {"activation": Activation, "remat": Remat, "backward": Backward, "expert_path": ExpertPath}
_COUNTS = ("vocab", "width", "layers", "heads", "kv_heads", "head_width", "hidden")
_AMOUNTS = (
    *("positions", "rope_theta", "local_rope_theta", "embed_std", "head_std", "weight_std", "embed_scale"),
    *("query_scale", "attention_cap", "logit_cap", "context", "experts", "experts_per_token", "expert_hidden"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: pre-RMSNorm, rotary or learned positions or both, grouped queries.

    Hashable and free of arrays, so that it can be a static argument. The defaults of the three `*_std` suit an untied
    model of some ten to some hundred units; a tied one wants an `embed_std` of about ``width ** -0.5``. What the
    defaults leave out is what families of published models have: a family is a choice of these numbers.

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
    qkv_bias: bool = False  # True: query, key and value have biases
    output_bias: bool = False  # True: the matrix behind attention has one
    mlp_bias: bool = False  # True: every matrix of the feed-forward block has one
    query_key_norm: bool = False  # True: each head's query and key are normed before they are rotated
    post_norms: bool = False  # True: what attention and feed-forward block add is normed too
    norm_offset: float = 0.0  # what norms multiply by is this plus their parameter
    tied: bool = False  # True: the embedding is the output matrix too
    positions: int = 0  # rows of the table of learned absolute positions; 0: none
    rope_theta: float = 0.0  # base of the rotary frequencies; 0: none
    rope_scaling: RopeScaling | None = None  # how frequencies are changed for sequences longer than those trained on
    local_rope_theta: float = 0.0  # base in layers with a window, where nothing is scaled; 0: as in all layers
    windows: tuple[int, ...] = ()  # of each layer, how many tokens, itself included, one attends to; 0: all; (): all 0
    query_scale: float = 0.0  # factor of queries; 0: head_width ** -0.5
    attention_cap: float = 0.0  # c: scores s become c tanh(s / c); 0: they stay
    logit_cap: float = 0.0  # the same for logits
    embed_scale: float = 0.0  # factor of embeddings, rounded to the dtype of the computation; 0: none
    experts: int = 0  # feed-forward blocks to choose from in a mixture; 0: no mixture
    experts_per_token: int = 0  # how many of them a token goes through
    expert_hidden: int = 0  # F of each of them
    expert_renormalised: bool = True  # True: the weights of the chosen ones sum to 1
    expert_path: ExpertPath = "grouped"  # grouped: chosen ones compute, all where `backward` is plain; dense: all do
    dense_layers: tuple[int, ...] = ()  # layers of a mixture that have one ordinary feed-forward block
    norm_eps: float = 1e-6
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    logprob_dtype: str = "float32"  # of logits, softmax and log-probabilities
    stacked: bool = False  # True: layers on a leading axis and a scan; False: one after the other, faster when shallow
    remat: Remat = "none"  # what the backward pass computes again: nothing, all but the products, a whole layer
    backward: Backward = "fast"  # fast: written out; plain: derived by JAX, so forward mode and second derivatives work
    embed_std: float = 0.5  # of the embedding and of the position table
    head_std: float = 0.02
    weight_std: float = 0.0  # of the matrices of a layer; 0: (inputs of the matrix) ** -0.5
    critic: Critic | None = None  # values come from a head on the policy's last layer, or on a decoder of their own
    critic_detached: bool = False  # True: a head on the policy's last layer reads it and does not change it
    lora: LoRA | None = None  # low-rank adapters beside some matrices; then these alone are trained, and the critic
    context: int = 0  # longest sequence that published weights are made for; 0: not said. Nothing is computed with it
    family: str | None = None  # the architecture of transformers whose names and file format weights have

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"ModelConfig.{name} is {getattr(self, name)}; allowed are positive whole numbers")
        for name in _AMOUNTS:
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
        for name in ("param_dtype", "compute_dtype", "logprob_dtype"):
            _check_float(name, getattr(self, name))
        self._check_windows()
        self._check_mixture()

    @property
    def repeats(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def without_lora(self) -> "ModelConfig":
        """The same model with no adapters."""
        return self if self.lora is None else dataclasses.replace(self, lora=None)

    def window(self, layer: int) -> int:
        """How many tokens, itself included, a token of this layer attends to; 0: all before it."""
        return self.windows[layer] if self.windows else 0

    def is_mixture(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return self.experts > 0 and layer not in self.dense_layers

    def _check_windows(self) -> None:
        if self.windows and (len(self.windows) != self.layers or min(self.windows) < 0):
            raise ValueError(
                f"ModelConfig.windows is {self.windows}; allowed are () or {self.layers} numbers of tokens, one a"
                " layer, 0 for all: give every layer one"
            )
        if self.local_rope_theta and not (self.windows and self.rope_theta):
            raise ValueError(
                f"ModelConfig.local_rope_theta is {self.local_rope_theta}; allowed with no windows or no rope_theta is"
                " 0: it is the base of rotations in layers with a window"
            )
        if self.rope_scaling is not None and not self.rope_theta:
            raise ValueError(
                "ModelConfig.rope_scaling is given and rope_theta 0; allowed is a scaling of rotations that are there:"
                " set rope_theta, or rope_scaling=None"
            )
        if self.rope_scaling is not None:
            self.rope_scaling.check_width(self.head_width)

    def _check_mixture(self) -> None:
        per_token, hidden = self.experts_per_token, self.expert_hidden
        if not self.experts:
            if per_token or hidden or self.dense_layers:
                raise ValueError(
                    f"ModelConfig.experts is 0 and experts_per_token {per_token}, expert_hidden {hidden}, dense_layers"
                    f" {self.dense_layers}; allowed without experts are 0, 0 and (): set experts, or leave these out"
                )
            return
        if not 1 <= per_token <= self.experts or not hidden or not self.gated:
            raise ValueError(
                f"ModelConfig.experts is {self.experts}, experts_per_token {per_token}, expert_hidden {hidden} and"
                f" gated {self.gated}; allowed are 1 to {self.experts} a token, a positive width, gated=True: set them"
            )
        if self.mlp_bias:
            raise ValueError("ModelConfig.mlp_bias is True in a mixture; allowed is False: experts have no biases")
        if len(set(self.dense_layers)) != len(self.dense_layers) or not {*self.dense_layers} < {*range(self.layers)}:
            raise ValueError(
                f"ModelConfig.dense_layers is {self.dense_layers}; allowed are some, not all, of the layers 0 to"
                f" {self.layers - 1}: with all of them it is no mixture"
            )
        if self.dense_layers and self.stacked:
            raise ValueError(
                f"ModelConfig.stacked is True and dense_layers {self.dense_layers}; allowed are layers of one kind in a"
                " stack: set stacked=False"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


def _check_float(name: str, dtype: str) -> None:
    try:
        valid = isinstance(dtype, str) and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"ModelConfig.{name} is {dtype!r}; allowed are names of float types: float32, bfloat16, ...")
