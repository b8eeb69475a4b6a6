"""Write `arithmetic.jsonl`: small plain-English arithmetic questions with answers and worked steps.

    python experiments/data/make_arithmetic.py

Three categories: addition and subtraction of numbers below ten, and two operations in a row. Every sum is asked in
three wordings: a held-out question has usually been seen in other words, so that a model of a million parameters can
answer it after minutes, but never in these. Deterministic to the byte.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

NAMES = ("Ann", "Ben", "Mia", "Tom")
THINGS = ("apples", "books", "cups", "eggs")
WORDINGS = {
    "addition": (
        "{name} has {a} {things} and gets {b} more. How many now?",
        "{name} buys {a} {things}, then {b} more. How many in all?",
        "What is {a} plus {b}?",
    ),
    "subtraction": (
        "{name} has {a} {things} and loses {b}. How many are left?",
        "{name} gives away {b} of {a} {things}. How many remain?",
        "What is {a} minus {b}?",
    ),
    "two steps": (
        "{name} has {a} {things}, gets {b} and eats {c}. How many now?",
        "{name} finds {a} {things}, then {b}, and sells {c}. How many are left?",
        "What is {a} plus {b} minus {c}?",
    ),
}


def choice(key: str, size: int) -> int:
    """A number below `size` that `key` alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % size


def sums() -> Iterator[tuple[str, tuple[int, ...], int, str]]:
    """Category, numbers, answer and worked steps of every sum."""
    for a in range(1, 10):
        for b in range(1, 10):
            yield "addition", (a, b), a + b, f"{a}+{b}={a + b}"
            if b <= a:
                yield "subtraction", (a, b), a - b, f"{a}-{b}={a - b}"
            if a + b < 10:
                c = 1 + choice(f"eaten {a} {b}", a + b)
                yield "two steps", (a, b, c), a + b - c, f"{a}+{b}={a + b};{a + b}-{c}={a + b - c}"


def lines() -> list[str]:
    """The lines of the file, in an order that mixes the categories."""
    out = []
    for category, numbers, answer, solution in sums():
        for index, wording in enumerate(WORDINGS[category]):
            key = f"{category} {numbers} {index}"
            values = dict(zip("abc", numbers, strict=False))
            name, things = NAMES[choice("name " + key, len(NAMES))], THINGS[choice("things " + key, len(THINGS))]
            prompt = wording.format(name=name, things=things, **values)
            fields = {"prompt": prompt, "answer": str(answer), "solution": solution, "category": category}
            out.append(json.dumps(fields))
    return sorted(out, key=lambda line: hashlib.sha256(line.encode()).hexdigest())


def main() -> None:
    """Write the file beside this script."""
    path = Path(__file__).with_name("arithmetic.jsonl")
    path.write_text("".join(line + "\n" for line in lines()), encoding="utf-8")
    print(f"{len(lines())} lines written to {path}")


if __name__ == "__main__":
    main()
