"""Who wrote a checkpoint, and whether that is who reads it; what a checkpoint may note beside its arrays."""

import json
from collections.abc import Collection, Mapping


def identity_difference(saved: Mapping, current: Mapping) -> str:
    """The entries in which two identities differ, in words; empty when they agree."""
    absent = "absent"
    return "; ".join(
        f"{name} was {saved.get(name, absent)} and is {current.get(name, absent)}"
        for name in _differences(saved, current)
    )


def check_identity(index: int, saved: Mapping, current: Mapping, accept: Collection[str]) -> None:
    """Raise a ValueError where the identities differ in more than the names in `accept`."""
    refused = [name for name in _differences(saved, current) if name not in accept]
    if refused:
        words = identity_difference(
            {n: saved[n] for n in refused if n in saved}, {n: current[n] for n in refused if n in current}
        )
        raise ValueError(
            f"Checkpoint {index} belongs to another run: {words}. Resume with what it was written with, "
            "use another run folder, or start afresh."
        )


def checked_meta(meta: dict) -> dict:
    """`meta` as it is, if JSON gives it back as it is; else a ValueError."""
    try:
        same = json.loads(json.dumps(meta, allow_nan=False)) == meta
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta of a checkpoint has to be plain JSON: {error}.") from None
    if not same:
        raise ValueError("meta of a checkpoint has to come back from JSON as it was: no tuples, no keys but strings.")
    return meta


def _differences(saved: Mapping, current: Mapping) -> list[str]:
    names = sorted(set(saved) | set(current))
    return [n for n in names if n not in saved or n not in current or saved[n] != current[n]]
