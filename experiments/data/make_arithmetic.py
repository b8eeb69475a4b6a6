"""Write `arithmetic.jsonl`: plain-English questions of six kinds, with answers and, on most lines, worked steps.

    python experiments/data/make_arithmetic.py

Somebody has a number of things, which changes once, twice or three times; no running total leaves 0 to 9. Or two people
are compared, or one of three options is asked for by its letter: such a line holds the ``"options"``, and ``"match":
"choice"`` says how its answer is to be compared. The solutions are of mixed quality, as found data is: a sixth of the
lines has none; of the others half write down every step and half only the last, whose first number has to be found in
the head. Deterministic to the byte.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

NAMES = ("Ann", "Ben", "Mia", "Tom")
THINGS = ("cups", "eggs", "nuts", "pens")
GAINS, LOSSES = ("gets", "finds", "buys", "wins"), ("loses", "eats", "sells", "drops")
QUALITIES = (*["none"] * 2, *["every step"] * 5, *["last step"] * 5)
MOST = 9
Fields = dict[str, object]


def choice(key: str, size: int) -> int:
    """A number below `size` that `key` alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % size


def totals(key: str, signs: tuple[int, ...]) -> list[int]:
    """Running totals, the first given; a change has the sign asked for, 0 where either will do."""
    values = [2 + choice(f"{key} start", 7)]
    for step, sign in enumerate(signs):
        options = [d for d in range(-9, 10) if d and d * sign >= 0 and 0 <= values[-1] + d <= MOST]
        values.append(values[-1] + options[choice(f"{key} change {step}", len(options))])
    return values


def steps(values: list[int]) -> list[str]:
    """A step like ``7-2=5`` for each change."""
    return [f"{old}{new - old:+d}={new}" for old, new in itertools.pairwise(values)]


def story(key: str, values: list[int]) -> str:
    """The totals in words."""
    parts = [f"{NAMES[choice(key + ' name', 4)]} has {values[0]} {THINGS[choice(key + ' things', 4)]}"]
    for step, (old, new) in enumerate(itertools.pairwise(values)):
        verbs = GAINS if new > old else LOSSES
        parts.append(f"{verbs[choice(f'{key} verb {step}', 4)]} {abs(new - old)}")
    return ", ".join(parts)


def changed(key: str, *, signs: tuple[int, ...]) -> tuple[Fields, list[str]]:
    """How many there are in the end, and the steps to it."""
    values = totals(key, signs)
    return {"prompt": f"{story(key, values)}. Now?", "answer": str(values[-1])}, steps(values)


def compared(key: str) -> tuple[Fields, list[str]]:
    """Whether the first of two has more."""
    first, second = choice(f"{key} first", MOST + 1), choice(f"{key} second", MOST)
    second += second >= first  # never equal
    here, there = choice(f"{key} here", 4), choice(f"{key} there", 3)
    there += there >= here
    things, more = THINGS[choice(f"{key} things", 4)], first > second
    prompt = f"{NAMES[here]} has {first} {things}, {NAMES[there]} {second}. Has {NAMES[here]} more?"
    return {"prompt": prompt, "answer": ("no", "yes")[more]}, [f"{first}{'<>'[more]}{second}"]


def chosen(key: str) -> tuple[Fields, list[str]]:
    """Whether what is there after one change is over, just or under a number; the answer is the letter of an option."""
    values = totals(key, (0,))
    sides = ((">", range(values[-1])), ("=", (values[-1],)), ("<", range(values[-1] + 1, MOST + 1)))
    right = choice(f"{key} right", len(sides))
    sign, numbers = sides[right]
    if not numbers:
        return chosen(f"{key} again")
    number = numbers[choice(f"{key} number", len(numbers))]
    options = [f"over {number}", str(number), f"under {number}"]
    listed = " ".join(f"{letter}) {option}" for letter, option in zip("ABC", options, strict=True))
    fields = {"prompt": f"{story(key, values)}. {listed}?", "answer": "ABC"[right], "match": "choice"}
    return {**fields, "options": options}, [*steps(values), f"{values[-1]}{sign}{number}"]


KINDS: dict[str, tuple[int, Callable[[str], tuple[Fields, list[str]]]]] = {
    "add": (150, partial(changed, signs=(1,))),
    "take away": (150, partial(changed, signs=(-1,))),
    "compare": (150, compared),
    "choose": (200, chosen),
    "two steps": (850, partial(changed, signs=(0, 0))),
    "three steps": (950, partial(changed, signs=(0, 0, 0))),
}
"""Category -> lines and what makes one from a key."""


def lines() -> Iterator[str]:
    """The lines of the file."""
    for category, (count, make) in KINDS.items():
        seen: set[object] = set()
        number = 0
        while len(seen) < count:
            number += 1
            key = f"{category} {number}"
            fields, worked = make(key)
            if fields["prompt"] in seen:
                continue
            seen.add(fields["prompt"])
            quality = QUALITIES[choice(f"{key} quality", len(QUALITIES))]
            if quality != "none":
                fields["solution"] = " ".join(worked if quality == "every step" else worked[-1:])
            yield json.dumps({**fields, "category": category})


def text() -> str:
    """The file, in an order that mixes the categories."""
    ordered = sorted(lines(), key=lambda line: hashlib.sha256(line.encode()).hexdigest())
    return "".join(line + "\n" for line in ordered)


def main() -> None:
    """Write the file beside this script."""
    path = Path(__file__).with_name("arithmetic.jsonl")
    path.write_text(text(), encoding="utf-8")
    print(f"{sum(count for count, _ in KINDS.values())} lines written to {path}")


if __name__ == "__main__":
    main()
