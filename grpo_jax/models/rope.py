"""Rotary frequencies, and how they change for sequences longer than those that a model was trained on."""

import dataclasses
import math
import typing

import numpy as np

Kind = typing.Literal["linear", "llama3", "dynamic", "yarn", "longrope"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """One of the published rules. A field that the rule does not read stays at its default.

    Two of them, dynamic and longrope, are published as rules about the length of the sequence at hand: the keys of a
    prompt would have to be computed again when a completion grows beyond `original_positions`, and two rows of a batch
    would be read by two models. Here a model has one set of frequencies: those of sequences of `length` tokens.
    Sampler and trainer then agree whatever the widths of their arrays, and the result is the published one for every
    sequence of up to `original_positions` tokens with a `length` of 0; for one of exactly `length` tokens (dynamic);
    for all longer than `original_positions` (longrope). Longer arrays than these are refused.

    Raises ValueError for numbers that the rule does not allow.
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
    length: int = 0  # dynamic, longrope: longest sequence, padding included; 0: `original_positions`

    def __post_init__(self) -> None:
        allowed = typing.get_args(Kind)
        if self.kind not in allowed:
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; allowed are {', '.join(allowed)}: choose one")
        if self.factor < 1:
            raise ValueError(f"RopeScaling.factor is {self.factor}; allowed is 1 or more: 1 changes nothing")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("kind", "factor", *_READ[self.kind]) and value != field.default:
                raise ValueError(
                    f"RopeScaling.{field.name} is {value}, which the rule {self.kind} does not read; allowed is"
                    f" {field.default}: leave it out, or take the rule that reads it"
                )
        if self.kind != "linear" and self.original_positions < 2:
            raise ValueError(
                f"RopeScaling.original_positions is {self.original_positions}; allowed for {self.kind} are 2 or more:"
                " give the length of the sequences that the model was trained on"
            )
        self._check_turns()
        self._check_factors()

    def check_length(self, width: int) -> None:
        """ValueError for arrays of `width` tokens that the frequencies are not those of."""
        if "length" not in _READ[self.kind]:
            return
        longest = self.length or self.original_positions
        if width > longest:
            raise ValueError(
                f"a sequence of {width} tokens is too long for a RopeScaling of kind {self.kind} for sequences of up to"
                f" {longest}; allowed are at most {longest} tokens: set RopeScaling.length to the longest sequence of"
                " the run, prompt and completion together, or shorten these"
            )

    def check_width(self, size: int) -> None:
        """ValueError where the rule has no frequencies for heads of width `size`."""
        if self.kind == "dynamic" and size < 4:
            raise ValueError(
                f"ModelConfig.head_width is {size}; allowed with dynamic scaling are 4 or more: widen heads"
            )
        for name in ("short_factor", "long_factor"):
            found = getattr(self, name)
            if self.kind == "longrope" and len(found) != size // 2:
                raise ValueError(
                    f"RopeScaling.{name} has {len(found)} numbers; allowed are {size // 2}, one for every frequency of"
                    f" a head of width {size}: give so many"
                )

    def _check_turns(self) -> None:
        if self.kind == "llama3" and not 0 < self.low_frequency < self.high_frequency:
            raise ValueError(
                f"RopeScaling.low_frequency is {self.low_frequency} and high_frequency {self.high_frequency}; allowed"
                " are two positive numbers of turns, the first one smaller: give both"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"RopeScaling.beta_slow is {self.beta_slow} and beta_fast {self.beta_fast}; allowed are two positive"
                " numbers of turns, the first one not larger: give both"
            )

    def _check_factors(self) -> None:
        for name in ("attention_factor", "mscale", "mscale_all_dim", "length"):
            if getattr(self, name) < 0:
                raise ValueError(f"RopeScaling.{name} is {getattr(self, name)}; allowed is 0 or more: 0 is the default")
        if any(x <= 0 for x in (*self.short_factor, *self.long_factor)):
            raise ValueError(
                f"RopeScaling.short_factor is {self.short_factor} and long_factor {self.long_factor}; allowed are"
                " positive numbers: they divide"
            )


_READ: dict[str, tuple[str, ...]] = {
    "linear": (),
    "llama3": ("original_positions", "low_frequency", "high_frequency"),
    "dynamic": ("original_positions", "length"),
    "yarn": (
        *("original_positions", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    ),
    "longrope": ("original_positions", "attention_factor", "short_factor", "long_factor", "length"),
}
"""What each rule reads beside its factor."""


def frequencies(theta: float, size: int, scaling: RopeScaling | None = None) -> tuple[np.ndarray, float]:
    """Radians a position f32[C/2] of the pairs of a head of width C, and the factor of cosines and sines.

    Unscaled, ``w_i = 1 / theta^(2 i / C)`` (arXiv:2104.09864). With s the factor, L `original_positions`:

        linear    w / s
        llama3    w / s where w L < 2 pi low, w where w L > 2 pi high; between them ``(1 - a) w / s + a w`` with
                  ``a = (w L / 2 pi - low) / (high - low)``
        dynamic   w of the base ``theta (s n / L - s + 1)^(C / (C - 2))`` for sequences of n > L tokens
        yarn      ``r w / s + (1 - r) w``, r rising from 0 to 1 between the pairs that turn `beta_fast` and `beta_slow`
                  times in L positions; factor ``0.1 log(s) + 1`` (arXiv:2309.00071)
        longrope  w divided pair by pair; factor ``sqrt(1 + log(s) / log(L))`` (arXiv:2402.13753)

    Rounded to float32 where `modeling_rope_utils` of transformers rounds, so that the numbers are the same.
    """
    exponent = np.arange(0, size, 2).astype(np.float32) / np.float32(size)
    if scaling is None:
        return _inverse(theta, exponent), 1.0
    return _RULES[scaling.kind](theta, exponent, scaling)


def _power(theta: float, exponent: np.ndarray) -> np.ndarray:
    """``theta^exponent``, float32 correctly rounded."""
    return np.power(float(theta), exponent.astype(np.float64)).astype(np.float32)


def _inverse(theta: float, exponent: np.ndarray) -> np.ndarray:
    return np.float32(1) / _power(theta, exponent)


def _linear(theta: float, exponent: np.ndarray, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    return _inverse(theta, exponent) / np.float32(scaling.factor), 1.0


def _llama3(theta: float, exponent: np.ndarray, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    plain, factor, length = _inverse(theta, exponent), np.float32(scaling.factor), scaling.original_positions
    low, high = np.float32(scaling.low_frequency), np.float32(scaling.high_frequency)
    wave = np.float32(2 * math.pi) / plain
    slow = np.where(wave > length / scaling.low_frequency, plain / factor, plain)
    share = (np.float32(length) / wave - low) / (high - low)
    between = (1 - share) * slow / factor + share * slow
    medium = (wave >= length / scaling.high_frequency) & (wave <= length / scaling.low_frequency)
    return np.where(medium, between, slow), 1.0


def _dynamic(theta: float, exponent: np.ndarray, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    size, factor, trained = 2 * len(exponent), scaling.factor, scaling.original_positions
    length = max(scaling.length, trained)
    return _inverse(theta * (factor * length / trained - (factor - 1)) ** (size / (size - 2)), exponent), 1.0


def _yarn(theta: float, exponent: np.ndarray, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    size, power, factor = 2 * len(exponent), _power(theta, exponent), np.float32(scaling.factor)

    def pair(turns: float) -> float:
        """Which pair turns so often in the length trained on."""
        return size * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    stays = 1 - np.clip(ramp, 0, 1)
    scaled = np.float32(1) / (factor * power) * (1 - stays) + np.float32(1) / power * stays
    return scaled, scaling.attention_factor or _yarn_factor(scaling)


def _yarn_factor(scaling: RopeScaling) -> float:
    def of(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return of(scaling.mscale) / of(scaling.mscale_all_dim)
    return of(1.0)


def _longrope(theta: float, exponent: np.ndarray, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    trained = scaling.original_positions
    divisors = scaling.long_factor if scaling.length > trained else scaling.short_factor
    frequency = np.float32(1) / (np.asarray(divisors, np.float32) * _power(theta, exponent))
    derived = math.sqrt(1 + math.log(scaling.factor) / math.log(trained))
    return frequency, scaling.attention_factor or derived


_RULES = {"linear": _linear, "llama3": _llama3, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope}
