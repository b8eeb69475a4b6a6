import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_jax.data import Jsonl
from grpo_jax.data.published import FORMATS, convert
from grpo_jax.lifeline import BadData
from grpo_jax.rewards.text import Record, accuracy

Written = Callable[[list[dict] | str], str]
GSM8K = [
    {
        "question": "Ann sells 48 clips in April and half as many in May. How many in all?",
        "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nThat makes 48+24 = <<48+24=72>>72 clips.\n#### 72",
    },
    {"question": "A house costs $1,000,000 more. What is it? ", "answer": "It is <<1+1=2>>2 million.\n#### 1,080,000"},
    {"question": "How cold is it?", "answer": "#### -5"},
]
MATH500 = [
    {
        "problem": "Convert $(0,3)$ to polar coordinates.",
        "solution": "We have $r = 3$, so the answer is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    },
]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(lines: list[dict] | str) -> str:
        path = tmp_path / "source.jsonl"
        text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def problem(solution: str, **fields: object) -> dict:
    return {"problem": "What?", "level": "Level 5", "type": "Algebra", "solution": solution, **fields}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_gsm8k_loses_its_annotations_and_its_answer_stands_alone(written: Written, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    assert convert("gsm8k", written(GSM8K), str(target)) == 3
    lines = read(target)
    assert [line["answer"] for line in lines] == ["72", "1080000", "-5"]
    assert lines[0]["prompt"] == "Ann sells 48 clips in April and half as many in May. How many in all?"
    assert lines[0]["solution"] == "In May she sold 48/2 = 24 clips.\nThat makes 48+24 = 72 clips."
    assert lines[1]["solution"] == "It is 2 million." and lines[1]["prompt"].endswith("What is it?")
    assert {line["match"] for line in lines} == {"math"}


def test_math_500_keeps_its_answer_subject_level_and_name(written: Written, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    convert("math-jsonl", written(MATH500), str(target))
    assert read(target) == [
        {
            "prompt": MATH500[0]["problem"],
            "answer": MATH500[0]["answer"],
            "solution": MATH500[0]["solution"],
            "match": "math",
            "category": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        }
    ]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"$\boxed{\text{(B) } \sqrt{\frac{a}{b}}}$", r"\text{(B) } \sqrt{\frac{a}{b}}"),
        (r"first $\boxed{1}$ and then $\boxed{2}$", "2"),
        (r"$\fbox{7}$", "7"),
        (r"$\boxed{1{,}000 \text{ cm}^2}$", r"1{,}000 \text{ cm}^2"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed 3$", "3"),
    ],
)
def test_the_answer_of_math_is_the_last_box_with_all_its_braces(
    written: Written, tmp_path: Path, solution: str, answer: str
):
    target = tmp_path / "out.jsonl"
    convert("math-jsonl", written([problem(solution)]), str(target))
    (line,) = read(target)
    assert line["answer"] == answer and line["category"] == "Algebra" and line["level"] == "Level 5"
    gold = Record("", line["solution"], (), line["answer"])
    assert accuracy(gold, match="math").value == 1.0


def test_a_folder_of_math_is_read_in_the_order_of_its_names(tmp_path: Path):
    for name, answer in (("algebra/10", "3"), ("algebra/2", "2"), ("geometry/1", "4")):
        file = tmp_path / "MATH" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        fields = problem(f"\\boxed{{{answer}}}", problem=name, type=name.split("/")[0])
        file.write_text(json.dumps(fields, indent=2), encoding="utf-8")
    target = tmp_path / "out.jsonl"
    assert convert("math-folder", str(tmp_path / "MATH"), str(target)) == 3
    lines = read(target)
    assert [(line["source"], line["answer"]) for line in lines] == [
        ("algebra/2.json", "2"),
        ("algebra/10.json", "3"),
        ("geometry/1.json", "4"),
    ]
    assert [line["category"] for line in lines] == ["algebra", "algebra", "geometry"]


def test_what_was_converted_can_be_trained_on(written: Written, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    convert("gsm8k", written(GSM8K), str(target))
    task = Jsonl(str(target), prompt_width=90, completion_width=160, heldout_share=0.0)
    assert sorted(line.answer for line in task.lines) == ["-5", "1080000", "72"]
    assert task.lines[0].metadata == {"match": "math"}


@pytest.mark.parametrize(
    ("form", "lines", "complaint"),
    [
        ("gsm8k", [{"question": "?", "answer": "no mark"}], r"source\.jsonl:1: field .answer. ends in 'no mark'"),
        ("gsm8k", [GSM8K[0], {"question": "?", "answer": "x #### "}], r"source\.jsonl:2: field .answer. ends in"),
        ("gsm8k", [{"question": "?", "answer": "x #### 1 or 2"}], r"source\.jsonl:1: "),
        ("gsm8k", [{"answer": "#### 1"}], r":1: field .question. is missing among \['answer'\]"),
        ("gsm8k", [{"question": 3, "answer": "#### 1"}], r":1: field .question. is 3; allowed is a string"),
        ("gsm8k", "", "the file is empty"),
        ("gsm8k", "{]", r"source\.jsonl:1: not valid JSON"),
        ("math-jsonl", [problem("no box")], r"source\.jsonl:1: the solution has no closed"),
        ("math-jsonl", [problem(r"\boxed{1")], r"source\.jsonl:1: the solution has no closed"),
        ("math-jsonl", [problem(r"\boxed{1}", answer=1)], r'field "answer" is 1; allowed is a string'),
        ("math-jsonl", [problem(r"\boxed{$$}")], r":1: answer '\$\$' cannot be read"),
        ("math-jsonl", [problem(r"\boxed{1}"), problem(r"\boxed{2}")], r"source\.jsonl:2: got a second answer, '2'"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is_written(
    written: Written, tmp_path: Path, form: str, lines: list[dict] | str, complaint: str
):
    target = tmp_path / "out.jsonl"
    with pytest.raises(BadData, match=complaint):
        convert(form, written(lines), str(target))
    assert not target.exists()


def test_one_question_with_two_spellings_of_its_answer_gets_the_first(written: Written, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    convert("math-jsonl", written([problem(r"\boxed{\frac12}"), problem(r"\boxed{0.5}")]), str(target))
    assert [line["answer"] for line in read(target)] == [r"\frac12", r"\frac12"]


def test_formats_and_folders_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="format: got 'gsm'; allowed are gsm8k, math-jsonl, math-folder"):
        convert("gsm", "x", "y")
    with pytest.raises(BadData, match=r"got no \.json file in it"):
        convert("math-folder", str(tmp_path), str(tmp_path / "out.jsonl"))
    assert set(FORMATS) == {"gsm8k", "math-jsonl", "math-folder"}
