"""Low-rank adapters: what they are described by, which matrices have them and what they add to a product.

A matrix W has beside it ``<name>_lora_a`` [inputs..., r] and ``<name>_lora_b`` [r, outputs...], and its product is

    y = x W + s (x A) B        s = alpha / r, or alpha / sqrt(r) where `rank_stabilised`

(Hu et al., arXiv:2106.09685; the second scale is that of Kalajdzievski, arXiv:2312.03732, with which the size of what
is added does not fall with r). A begins normal, B zero, so that adapters change nothing at first. They stay apart from
W in sampling and training alike: both compute the same sum in the same order.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from grpo_jax.types import Params

A, B = "_lora_a", "_lora_b"
INPUTS: Mapping[str, int] = {
    **dict.fromkeys(("query", "key", "value", "gate", "up", "down", "head"), 1),
    "output": 2,
}
"""Matrices that can have adapters -> how many of their dimensions are those of the input."""
ATTENTION = tuple(f"layers/*/{name}" for name in ("query", "key", "value", "output"))


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapters of rank `rank` on the matrices whose names any pattern of `targets` matches (`models.parts`).

    `alpha` is the numerator of their scale. Of what a pattern matches only matrices count: ``layers/*`` are all those
    of the layers. Experts of a mixture and embeddings have none. Raises ValueError for numbers that are no adapter.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ATTENTION
    rank_stabilised: bool = False
    dtype: str = "float32"  # of adapters and of what the optimiser keeps of them; that of the model is for the rest

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.lora.rank: got {self.rank}, allowed >= 1: set 8, or model.lora=None for none")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"model.lora.alpha: got {self.alpha}, allowed > 0: set it to the rank for a scale of 1")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(
                f"model.lora.targets: got {self.targets!r}, allowed is a tuple of patterns of names: write"
                ' ("layers/*/query", "layers/*/value")'
            )
        try:
            known = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        except TypeError:
            known = False
        if not known:
            raise ValueError(f"model.lora.dtype: got {self.dtype!r}, allowed are float32, bfloat16, ...: name one")

    @property
    def scale(self) -> float:
        """s of the equation above."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def on(self, name: str) -> bool:
        """Whether the matrix of this name, ``layers/3/query``, has an adapter."""
        return name.rpartition("/")[2] in INPUTS and any(fnmatch.fnmatchcase(name, one) for one in self.targets)

    def check(self, known: Sequence[str]) -> None:
        """Raise a ValueError for a pattern that matches none of the names `known` that can have adapters."""
        able = [name for name in known if name.rpartition("/")[2] in INPUTS]
        for pattern in self.targets:
            if not fnmatch.filter(able, pattern):
                kinds = dict.fromkeys(name.rpartition("/")[2] for name in able)
                raise ValueError(
                    f"model.lora.targets: got {pattern!r}, which matches no matrix that can have an adapter, allowed"
                    f" here are patterns of {', '.join(kinds)}, in layers/0 and so on: correct it"
                )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.endswith((A, B))


def without_adapters(params: Params) -> Params:
    """`params` without adapters, and without what then is empty: of a policy trained by them alone nothing is left."""
    found = {
        name: without_adapters(part) if isinstance(part, Mapping) else part
        for name, part in params.items()
        if not is_adapter(name)
    }
    return {name: part for name, part in found.items() if not isinstance(part, Mapping) or part}
