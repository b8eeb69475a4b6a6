"""Rotary positions in a published config.json: `rope_theta` and `rope_scaling`, or `rope_parameters` in newer ones."""

import typing
from typing import Any

from grpo_jax.models.fields import REQUIRED, Fields
from grpo_jax.models.rope import Kind, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
"""The two kinds of layers, which may have rotations of their own."""
_KINDS: dict[str, Kind | None] = {"default": None, **{kind: kind for kind in typing.get_args(Kind)}}


def read_one(fields: Fields, *, theta: float, context: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a ModelConfig whose layers all follow one rule.

    `theta` is the base where the file names none, `context` the length of sequences that the model is made for.
    """
    base = fields.amount("rope_theta", None)
    original = fields.count("original_max_position_embeddings", None)
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    if old is not None and new is not None:
        fields.refuse("rope_scaling", "an object", "null beside rope_parameters")
    rule = new or old
    if rule is None:
        return {"rope_theta": theta if base is None else base, "rope_scaling": None}
    return _rule(rule, theta=theta, outer=base, context=context, original=original)


def read_two(fields: Fields, *, theta: float, local_theta: float, context: int) -> dict[str, Any]:
    """The same, and `local_rope_theta`, where layers with a window rotate otherwise and unscaled."""
    base, local = fields.amount("rope_theta", None), fields.amount("rope_local_base_freq", None)
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    if new is None:
        found = _rule(old, theta=theta, outer=base, context=context) if old is not None else _plain(base, theta)
        return {**found, "local_rope_theta": local_theta if local is None else local}
    if old is not None:
        fields.refuse("rope_scaling", "an object", "null beside rope_parameters")
    whole, near = new.inner(FULL), new.inner(SLIDING)
    new.rest()
    found = _rule(whole, theta=theta, outer=base, context=context) if whole is not None else _plain(base, theta)
    beside = (
        _rule(near, theta=local_theta, outer=local, context=context) if near is not None else _plain(local, local_theta)
    )
    if beside["rope_scaling"] is not None:
        fields.refuse(f"rope_parameters.{SLIDING}", beside["rope_scaling"].kind, "rotations without scaling")
    return {**found, "local_rope_theta": beside["rope_theta"]}


def write_one(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The object that `read_one` reads back, in the newer form."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        found["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        given = {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
        found |= {name: value for name, value in given.items() if value}
    if scaling.kind == "longrope":
        found |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
    return found | ({"attention_factor": scaling.attention_factor} if scaling.attention_factor else {})


def _plain(base: float | None, theta: float) -> dict[str, Any]:
    return {"rope_theta": theta if base is None else base, "rope_scaling": None}


def _rule(
    rule: Fields, *, theta: float, outer: float | None, context: int, original: int | None = None
) -> dict[str, Any]:
    own = rule.amount("rope_theta", None)
    if own is not None and outer is not None and own != outer:
        rule.refuse("rope_theta", own, f"{outer!r}, as beside it")
    rule.only({"partial_rotary_factor": (None, 1.0)})
    newer = rule.has("rope_type")
    kind = rule.choice("rope_type" if newer else "type", _KINDS, "default")
    if newer and rule.has("type") and rule.choice("type", _KINDS) != kind:
        rule.refuse("type", "another rule", "what rope_type says")
    scaling = None if kind is None else _scaling(rule, kind, context, original)
    rule.any("rope_type")
    rule.any("type")
    rule.rest()
    return {**_plain(own if own is not None else outer, theta), "rope_scaling": scaling}


def _scaling(rule: Fields, kind: Kind, context: int, original: int | None) -> RopeScaling | None:
    found: dict[str, Any] = {}
    if kind == "dynamic":
        found["original_positions"] = context
    elif kind != "linear":
        inside = rule.count("original_max_position_embeddings", None)
        found["original_positions"] = original or inside or context
    if kind in ("yarn", "longrope"):
        # Without a factor, it is by how much longer sequences are than those trained on.
        found["factor"] = rule.amount("factor", None) or context / found["original_positions"]
        found["attention_factor"] = rule.amount("attention_factor", None) or 0.0
    else:
        found["factor"] = rule.amount("factor", REQUIRED)
    if kind == "llama3":
        found["low_frequency"] = rule.amount("low_freq_factor")
        found["high_frequency"] = rule.amount("high_freq_factor")
    if kind == "yarn":
        found["beta_fast"] = rule.amount("beta_fast", None) or 32.0
        found["beta_slow"] = rule.amount("beta_slow", None) or 1.0
        found["truncate"] = rule.switch("truncate", True)
        found["mscale"] = rule.amount("mscale", None) or 0.0
        found["mscale_all_dim"] = rule.amount("mscale_all_dim", None) or 0.0
    if kind == "longrope":
        found |= {name: tuple(_amounts(rule, name)) for name in ("short_factor", "long_factor")}
    try:
        return RopeScaling(kind=kind, **found)
    except ValueError as error:
        rule.refuse("rope_type", kind, f"a rule whose numbers fit ({error})")
        return None


def _amounts(rule: Fields, name: str) -> list[float]:
    value = rule.any(name)
    good = isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1e30 for one in value
    )
    if not good or not value:
        rule.refuse(name, value, "a list of numbers above 0")
        return [1.0]
    return [float(one) for one in value]
