"""Write `arithmetic.jsonl`: plain-English arithmetic questions with answers and, on some lines, worked steps.

    python experiments/data/make_arithmetic.py

A question starts with a number of things and changes it once, twice or three times; no running total leaves 0 to 9.
The solutions are of mixed quality, as found data is: a third of the lines has none, a third writes down every step, a
third only the last one, whose first number has to be found in the head. Deterministic to the byte.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

NAMES = ("Ann", "Ben", "Mia", "Tom")
THINGS = ("cups", "eggs", "nuts", "pens")
GAINS, LOSSES = ("gets", "finds", "buys", "wins"), ("loses", "eats", "sells", "drops")
CATEGORIES = {"one step": 300, "two steps": 1100, "three steps": 1600}
"""Lines of each category; the number of changes is the place in this dict."""
QUALITIES = ("none", "every step", "last step")
MOST = 9


def choice(key: str, size: int) -> int:
    """A number below `size` that `key` alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % size


def problem(key: str, changes: int) -> tuple[list[int], list[str]]:
    """Running totals, the first given, and a step like ``7-2=5`` for each change."""
    totals, steps = [2 + choice(f"{key} start", 8)], []
    for step in range(changes):
        total = totals[-1]
        options = [d for d in range(-9, 10) if d and 0 <= total + d <= MOST]
        delta = options[choice(f"{key} change {step}", len(options))]
        totals.append(total + delta)
        steps.append(f"{total}{delta:+d}={total + delta}")
    return totals, steps


def question(key: str, totals: list[int]) -> str:
    """The problem in words."""
    parts = [f"{NAMES[choice(key + ' name', 4)]} has {totals[0]} {THINGS[choice(key + ' things', 4)]}"]
    for step, (old, new) in enumerate(itertools.pairwise(totals)):
        verbs = GAINS if new > old else LOSSES
        parts.append(f"{verbs[choice(f'{key} verb {step}', 4)]} {abs(new - old)}")
    told = ", ".join(parts[:-1]) + f" and {parts[-1]}"
    return f"{told}. How many now?"


def lines() -> Iterator[str]:
    """The lines of the file."""
    for changes, (category, count) in enumerate(CATEGORIES.items(), start=1):
        seen: set[str] = set()
        number = 0
        while len(seen) < count:
            number += 1
            key = f"{category} {number}"
            totals, steps = problem(key, changes)
            prompt = question(key, totals)
            if prompt in seen:
                continue
            seen.add(prompt)
            fields = {"prompt": prompt, "answer": str(totals[-1]), "category": category}
            quality = QUALITIES[choice(f"{key} quality", len(QUALITIES))]
            if quality != "none":
                fields["solution"] = " ".join(steps if quality == "every step" else steps[-1:])
            yield json.dumps(fields)


def text() -> str:
    """The file, in an order that mixes the categories."""
    ordered = sorted(lines(), key=lambda line: hashlib.sha256(line.encode()).hexdigest())
    return "".join(line + "\n" for line in ordered)


def main() -> None:
    """Write the file beside this script."""
    path = Path(__file__).with_name("arithmetic.jsonl")
    path.write_text(text(), encoding="utf-8")
    print(f"{sum(CATEGORIES.values())} lines written to {path}")


if __name__ == "__main__":
    main()
