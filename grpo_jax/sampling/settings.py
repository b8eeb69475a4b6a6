"""How to sample."""

from flax import struct

from grpo_jax.types import Array


class Sampling(struct.PyTreeNode):
    """Settings of `generate`. All but the temperature are static: another value is another compiled program.

    Raises ValueError for a value out of range (a traced temperature cannot be read, and is not).
    """

    max_tokens: int = struct.field(pytree_node=False)  # T, width of the completions
    stop: tuple[int, ...] = struct.field(pytree_node=False)  # tokens that end a completion; they belong to it
    temperature: float | Array = 1.0  # 0: the most likely token, with no randomness
    top_k: int = struct.field(pytree_node=False, default=0)  # 0: no limit
    top_p: float = struct.field(pytree_node=False, default=1.0)  # 1: no limit
    min_p: float = struct.field(pytree_node=False, default=0.0)  # 0: no limit
    cache_chunk: int = struct.field(pytree_node=False, default=32)  # tokens by which the cache grows

    def __post_init__(self) -> None:
        for name in ("max_tokens", "cache_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"Sampling.{name} is {getattr(self, name)}; allowed are positive whole numbers")
        if not isinstance(self.stop, tuple) or any(not isinstance(token, int) or token < 0 for token in self.stop):
            raise ValueError(f"Sampling.stop is {self.stop!r}; allowed is a tuple of token ids, such as (2,) or ()")
        if isinstance(self.temperature, int | float) and self.temperature < 0:
            raise ValueError(f"Sampling.temperature is {self.temperature}; allowed is 0 (most likely token) or more")
        if self.top_k < 0:
            raise ValueError(f"Sampling.top_k is {self.top_k}; allowed are 0 (no limit) and positive whole numbers")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling.top_p is {self.top_p}; allowed is 0 < top_p <= 1, where 1 cuts nothing")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"Sampling.min_p is {self.min_p}; allowed is 0 <= min_p <= 1, where 0 cuts nothing")

    @property
    def truncates(self) -> bool:
        """True when some token may be cut from the distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0
