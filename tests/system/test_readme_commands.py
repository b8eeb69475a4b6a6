"""Every command of the README does what the README says, shortened by further settings only.

A new command in the README needs a row in `COMMANDS`, in one line: what it looks like, which flags make it short, what
it has to print. Commands run in the order of the README, in a folder of their own, so one finds the runs that those
before it have left in ``runs/``. All of them run as processes of their own in the slow test; the quick one runs those
of the command line in this process, because starting JAX is most of the time of a short run.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from grpo_jax import cli
from tests.system.small_checkpoint import checkpoint


class Short(NamedTuple):
    """A command of the README: what it looks like (* for anything), flags that shorten it, patterns of its output."""

    like: str
    flags: str = ""
    prints: tuple[str, ...] = ()
    again: str = ""  # what the same command prints when it is given a second time
    quick: bool = True


def settings(text: str) -> str:
    return " ".join(f"--set {setting}" for setting in text.split())


MODEL = "model.width=16 model.layers=1 model.heads=1 model.kv_heads=1 model.head_width=16 model.hidden=32"
SIZES = "train.prompts=4 train.group_size=4 evaluation.prompts=8 evaluation.full_prompts=8 evaluation.samples=2"
WARM = "warm_start.steps=2 warm_start.limit=4 warm_start.gate=0 warm_start.check_every=2 warm_start.rows=4"
TINY = settings(f"{MODEL} {SIZES} {WARM} train.steps=2")
ABLATED = f"{TINY} --set train.minibatches=2 --variants grpo-adam,loo-adam --seeds 0"
TABLE = (r"accuracy, sampled\s+\d", r"length, tokens\s+\d")

COMMANDS = (
    Short("make *"),  # checked dry: `make -n`
    Short(
        "grpo-jax train experiments/from_jsonl.py --set data.path=FILE",
        TINY,
        (*TABLE, r"numbers in .*summary\.json"),
        quick=False,
    ),
    Short(
        "grpo-jax train experiments/math_jsonl.py *",
        settings(
            "dtype=float32 size.prompts=4 size.group_size=4 size.prompt_width=1024 size.completion_width=64"
            " train.steps=2 evaluation.prompts=4 rank=2"
        ),
        TABLE,
        quick=False,
    ),
    Short("grpo-jax export runs/math_jsonl --out exported", "", (r"exported",), quick=False),
    Short("grpo-jax train * --dry-run", "", (r"parameters", r"recipe\.", r"prompt: \d", r"text rewards")),
    Short("grpo-jax train experiments/quickstart.py --run-dir runs/mine", TINY, TABLE, again="continuing"),
    Short("grpo-jax train experiments/quickstart.py --set *", TINY, TABLE),
    Short(
        "python experiments/quickstart.py --variant supervised_only", TINY + " --set train.steps=0", TABLE, quick=False
    ),
    Short("python experiments/minimal.py", "", (r"accuracy",), quick=False),
    Short("grpo-jax show runs/quickstart --samples worst", "", (*TABLE, r"reward/mean", r"worst of 16 completions")),
    Short(
        "grpo-jax eval runs/quickstart *",
        "--prompts 16 --samples 2 --ks 1,2",
        (r"16 held-out problems, 2\s+completions", r"%"),
    ),
    Short("grpo-jax report runs/quickstart runs/mine *", "", (r"compare\.html",)),
    Short("grpo-jax report runs/quickstart", "", (r"report\.html",)),
    Short("grpo-jax ablate experiments/ablate_objectives.py", ABLATED, (r"grpo-adam", r"should coincide"), quick=False),
    Short(
        "python experiments/compare_gradients.py",
        f"{settings(MODEL + ' ' + WARM)} --recipes grpo,dapo --rows 32 --dir runs/compared",
        (r"grpo", r"dapo", r"gradients\.svg"),
        quick=False,
    ),
    Short("python experiments/estimators.py", "", (r"k3",), quick=False),
    Short(
        "grpo-jax ablate experiments/all_recipes.py",
        f"{settings(MODEL + ' ' + WARM)} --set train.steps=5 --set train.prompts=4 --set train.group_size=4"
        " --set evaluation.prompts=8 --set evaluation.full_prompts=8 --variants grpo,tis --seeds 0",
        (r"grpo", r"What the file expects"),
        quick=False,
    ),
    Short('grpo-jax sample runs/quickstart --prompt "7-7+6-7-2*1=" *', "--samples 2", (r"7-7\+6-7-2\*1=",)),
)
PLACEHOLDERS = {"FILE": "questions.jsonl", "CHECKPOINT": "checkpoint"}
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SHELLS = ("sh", "bash", "shell", "console")


def commands(text: str) -> list[str]:
    """The commands of a page, without their comments: indented lines, and those fenced as a shell's."""
    found, fence = [], None
    for line in text.replace("\\\n", " ").splitlines():
        opened = re.match(r"```(\w*)", line)
        if opened:
            fence = None if fence is not None else opened[1]
        elif fence in SHELLS or (fence is None and line.startswith("    ")):
            found.append(re.sub(r"(^|\s+)#\s.*", "", line).strip().removeprefix("$ "))
    return [" ".join(command.split()) for command in found if command]


def row_of(command: str) -> Short | None:
    return next((row for row in COMMANDS if fnmatchcase(command, row.like)), None)


def in_this_process(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(words)
    return code, said.getvalue()


def in_a_process(words: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    ended = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
    )
    return ended.returncode, ended.stdout


def execute(command: str, row: Short, *, quick: bool) -> tuple[int, str]:
    """What `command`, made short by its `row`, ends with and prints."""
    for name, value in PLACEHOLDERS.items():
        command = re.sub(rf"\b{name}\b", value, command)
    words = [*shlex.split(command), *shlex.split(row.flags)]
    if words[0] == "make":
        return in_a_process(["make", "--dry-run", "--directory", str(Path(__file__).resolve().parents[2]), *words[1:]])
    if words[0] == "python":
        return in_a_process([sys.executable, *words[1:]])
    assert words[0] == "grpo-jax", f"{command}: run what the README calls {words[0]!r} here"
    return in_this_process(words[1:]) if quick else in_a_process([sys.executable, "-m", "grpo_jax", *words[1:]])


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the commands run: the experiments of the project, and a file of questions."""
    for name in ("experiments", "benchmarks"):
        (tmp_path / name).symlink_to(root / name)
    numbers = [(a, b) for a in range(20) for b in range(20)]
    lines = [f'{{"prompt": "{a} and {b}?", "answer": "{a + b}", "solution": "{a}+{b}"}}\n' for a, b in numbers]
    (tmp_path / PLACEHOLDERS["FILE"]).write_text("".join(lines), encoding="utf-8")
    checkpoint(tmp_path / PLACEHOLDERS["CHECKPOINT"], "qwen2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_all(*, quick: bool) -> None:
    for command in commands(README):
        row = row_of(command)
        assert row is not None
        if quick and not row.quick:
            continue
        code, said = execute(command, row, quick=quick)
        assert code == 0, f"{command}\n{said}"
        for pattern in row.prints:
            assert re.search(pattern, said), f"{command}: nothing like {pattern!r} in\n{said}"
        if row.again:
            code, said = execute(command, row, quick=quick)
            assert code == 0 and row.again in said, f"{command}, a second time\n{said}"


def test_every_command_has_a_row_and_every_row_a_command():
    given = commands(README)
    assert len(given) >= 10
    assert [command for command in given if row_of(command) is None] == []
    assert [row.like for row in COMMANDS if not any(row_of(command) is row for command in given)] == []


@pytest.mark.slow
def test_every_command_that_is_quick_prints_what_it_should(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("grpo_jax.heldout.CHUNK", 8)  # evaluations of eight problems compute no more than eight
    check_all(quick=True)


@pytest.mark.slow
def test_every_command_prints_what_it_should_as_a_process_of_its_own(place: Path):
    check_all(quick=False)


def test_commands_are_found_in_both_forms_and_python_is_none():
    page = (
        "Do\n\n    make x   # why\n    # only words\n\n```sh\n$ grpo-jax a \\\n  b\n```\n```python\n    python y\n```\n"
    )
    assert commands(page) == ["make x", "grpo-jax a b"]
    assert row_of("rm -rf everything") is None
