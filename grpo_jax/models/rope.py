"""How rotary frequencies change for sequences longer than those that a model was trained on."""

import dataclasses
import typing

Kind = typing.Literal["linear", "llama3", "dynamic", "yarn", "longrope"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """One of the published rules. A field that the rule does not read stays at its default.

    Raises ValueError for numbers that no rule allows.
    """

    kind: Kind
    factor: float = 1.0  # how much longer sequences may be
    original_positions: int = 0  # length of the sequences trained on
    low_frequency: float = 0.0  # llama3: turns within that length below which a frequency is divided by `factor`
    high_frequency: float = 0.0  # llama3: turns above which it stays
    beta_fast: float = 32.0  # yarn: turns above which a frequency stays
    beta_slow: float = 1.0  # yarn: turns below which it is divided by `factor`
    truncate: bool = True  # yarn: whether the borders between the two are whole dimensions
    attention_factor: float = 0.0  # yarn, longrope: factor of cosine and sine; 0: the one that the rule derives
    mscale: float = 0.0  # yarn: with `mscale_all_dim`, what the derived factor is made of; 0: not given
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()  # longrope: divisors of the frequencies of sequences within that length
    long_factor: tuple[float, ...] = ()  # longrope: divisors for longer ones

    def __post_init__(self) -> None:
        allowed = typing.get_args(Kind)
        if self.kind not in allowed:
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; allowed are {', '.join(allowed)}: choose one")
        if self.factor < 1:
            raise ValueError(f"RopeScaling.factor is {self.factor}; allowed is 1 or more: 1 changes nothing")
