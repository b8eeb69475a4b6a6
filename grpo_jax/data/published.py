r"""The published files of GSM8K and MATH as JSONL of ours: ``{"prompt", "answer", "solution", "category", ...}``.

GSM8K: a JSONL of ``{"question", "answer"}`` whose answer ends in ``#### 18`` and whose steps carry the annotations of a
calculator, ``<<3*6=18>>`` (Cobbe et al. 2021, arXiv 2110.14168). MATH: folders of one JSON file a problem, with
``problem``, ``level``, ``type`` and ``solution``, whose last ``\boxed{}`` is the answer (Hendrycks et al. 2021, arXiv
2103.03874); or a JSONL of ``{"problem", "solution", "answer", "subject", "level", "unique_id"}``, as MATH-500 is.
What cannot be converted is a `BadData` with file and line; no line is left out in silence.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from grpo_jax.data.lines import objects
from grpo_jax.lifeline import BadData
from grpo_jax.rewards.answers import boxed, parse_answer, same

_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_RESULT = "####"
Fields = dict[str, object]


def gsm8k(path: str) -> Iterator[Fields]:
    """The lines of a file of GSM8K; the answer without the commas of thousands, the solution without annotations."""
    for where, fields in objects(path):
        question, worked = (_text(where, fields, name) for name in ("question", "answer"))
        solution, marks, result = worked.rpartition(_RESULT)
        answer = result.strip().replace(",", "").removeprefix("$").strip()
        if not marks or not answer or len(answer.split()) > 1:
            raise BadData(
                f'{where}: field "answer" ends in {worked[-40:]!r}; allowed is a last line "{_RESULT} 18": correct it'
            )
        yield {
            "prompt": question.strip(),
            "answer": answer,
            "solution": _CALCULATION.sub("", solution).strip(),
            "match": "math",
        }


def math_lines(path: str) -> Iterator[Fields]:
    """The lines of a JSONL of MATH, such as MATH-500; without "answer" it is that of the last box of the solution."""
    for where, fields in objects(path):
        yield _math(where, fields)


def math_folder(path: str) -> Iterator[Fields]:
    """The problems of a folder of MATH, in the order of their names; the folder of each is kept as "source"."""
    root = Path(path)
    files = sorted(root.rglob("*.json"), key=lambda file: [_natural(part) for part in file.relative_to(root).parts])
    if not files:
        raise BadData(
            f"{path}: got no .json file in it; allowed is a folder of one JSON file a problem: check the path"
        )
    for file in files:
        for where, fields in objects(str(file), whole=True):
            yield {**_math(where, fields), "source": str(file.relative_to(root))}


FORMATS: Mapping[str, Callable[[str], Iterator[Fields]]] = {
    "gsm8k": gsm8k,
    "math-jsonl": math_lines,
    "math-folder": math_folder,
}
"""Name of a published format -> what reads a file or folder of it."""


def convert(form: str, source: str, target: str) -> int:
    """Write the lines of `source`, which is of the format `form`, to the file `target`, and return how many.

    Nothing is written where a line cannot be converted. Raises ValueError for an unknown format, BadData for data that
    is not of it, and for a question that stands there twice with two answers.
    """
    if form not in FORMATS:
        raise ValueError(f"format: got {form!r}; allowed are {', '.join(FORMATS)}: choose one")
    lines = list(FORMATS[form](source))
    seen: dict[object, str] = {}
    for number, line in enumerate(lines, start=1):
        answer = str(line["answer"])
        first = seen.setdefault(line["prompt"], answer)
        if first != answer and not _alike(first, answer):
            where = f"{source}/{line['source']}" if "source" in line else f"{source}:{number}"
            raise BadData(
                f"{where}: got a second answer, {answer!r}, to a question answered {first!r} before;"
                " allowed is one: correct or remove one of them"
            )
        line["answer"] = first  # one spelling for one question
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(target).write_text(text, encoding="utf-8", newline="\n")
    return len(lines)


def _alike(first: str, second: str) -> bool:
    a, b = parse_answer(first), parse_answer(second)
    return a is not None and b is not None and same(a, b)


def _math(where: str, fields: Mapping) -> Fields:
    problem, solution = (_text(where, fields, name) for name in ("problem", "solution"))
    stated = fields.get("answer")
    if stated is not None and not isinstance(stated, str):
        raise BadData(f'{where}: field "answer" is {stated!r:.80}; allowed is a string: put it in quotes')
    answer = boxed(solution) if stated is None else stated
    if answer is None or not answer.strip():
        raise BadData(
            f"{where}: the solution has no closed \\boxed{{}} with an answer in it, {solution[-60:]!r}; allowed is one:"
            ' add it, or an "answer"'
        )
    if parse_answer(answer) is None:
        raise BadData(f"{where}: answer {answer[:80]!r} cannot be read; allowed is a mathematical answer: correct it")
    line: Fields = {"prompt": problem.strip(), "answer": answer.strip(), "solution": solution.strip(), "match": "math"}
    category = fields.get("type", fields.get("subject"))
    if isinstance(category, str) and category:
        line["category"] = category
    line |= {name: fields[name] for name in ("level", "unique_id") if isinstance(fields.get(name), str | int)}
    return line


def _text(where: str, fields: Mapping, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        got = f"is {value!r:.80}" if name in fields else f"is missing among {sorted(fields)}"
        raise BadData(f'{where}: field "{name}" {got}; allowed is a string that is not blank: correct it')
    return value


def _natural(name: str) -> tuple[int, str]:
    """By number where a name begins with one: 2.json before 10.json."""
    digits = re.match(r"\d{1,15}", name)
    return (int(digits[0]) if digits else 0, name)
