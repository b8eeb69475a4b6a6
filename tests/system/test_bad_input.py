"""Bad input, as a user would give it: one message with the way out, the right code, nothing begun and nothing lost.

What fails before anything is compiled is tried in this process, through the whole command line. The run that the cases
about folders begin with is trained once.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo_jax import cli
from grpo_jax.journal import read, sole_writer

EXPERIMENT = '''
from dataclasses import replace

from grpo_jax.data import Jsonl
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train
from grpo_jax.groups import by_prompt
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer


def mine(collected, memory):
    """A grouping in the user's own file."""
    return by_prompt(collected, memory)


DATA = Jsonl({path!r}, prompt_width=20, completion_width=12, heldout_share=0.25)
EXPERIMENT = Experiment(
    name="bad",
    data=DATA,
    model=ModelConfig(
        vocab=DATA.tokenizer.vocab_size, width=16, layers=1, heads=1, kv_heads=1, head_width=16, hidden=32, positions=32
    ),
    sampling=Sampling(max_tokens=12, stop=(DATA.tokenizer.eos,)),
    recipe=replace(grpo(beta=0.0), grouping=mine),
    text_rewards=DATA.text_rewards(),
    train=Train(steps=2, prompts=4, group_size=2),
    optimizer=Optimizer(learning_rate=1e-3),
    evaluation=Evaluation(every=2, prompts=2, full_prompts=2, samples=1, show=1),
    saving=Saving(every=1),
)
'''
LINES = [json.dumps({"prompt": f"{a} or {b}?", "answer": str(max(a, b))}) for a in range(8) for b in range(8)]
GOOD = ("\n".join(LINES) + "\n").encode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with good data and an experiment that reads it; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRPO_JAX_TRACEBACK", raising=False)
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    (tmp_path / "bad_experiment.py").write_text(EXPERIMENT.format(path="good.jsonl"), encoding="utf-8")
    yield tmp_path
    for name in ("bad_experiment", "other_experiment"):
        sys.modules.pop(name, None)


def refused(capsys: pytest.CaptureFixture[str], code: int, sentence: str, *arguments: str) -> str:
    """The one message of a command that ends with `code`; it matches `sentence`."""
    sys.modules.pop("bad_experiment", None)
    assert cli.main(list(arguments)) == code
    out, error = capsys.readouterr()
    assert "Traceback" not in out + error and len(re.findall(r"^(?:error|stopped): ", error, re.M)) == 1, error
    assert re.search(sentence, error, re.S), error
    assert re.search(
        "allowed|valid numbers|Remedy|must multiply|axes are|[Rr]e(?:store|name|pair)|same command|use ", error
    ), error
    return error


def train(*settings: str, file: str = "bad_experiment.py") -> list[str]:
    return ["train", file, *(flag for setting in settings for flag in ("--set", setting))]


def line(text: str | bytes) -> bytes:
    """A good file with one bad line, the 65th."""
    return GOOD + (text.encode() if isinstance(text, str) else text) + b"\n"


DATA_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty; allowed is one JSON object a line; write at least one"),
    "blank": (b"\n \n", "the file is empty"),
    "latin": (
        line('{"prompt": "\u00e9", "answer": "1"}'.encode("latin-1")),
        ":65: byte 0xe9 at column 13 is not UTF-8; allowed is a file in UTF-8",
    ),
    "utf-16": (GOOD.decode().encode("utf-16"), ":1: .* byte order mark of UTF-16; allowed is UTF-8 without one"),
    "mark": (b"\xef\xbb\xbf" + GOOD, ":1: .* byte order mark of UTF-8; allowed is UTF-8 without one; save it so"),
    "zeros": (line('{"prompt": "a\x00b", "answer": "1"}'), ":65: not valid JSON .Invalid control character"),
    "compressed": (
        b"\x1f\x8b\x08\x00" + bytes(60),
        ":1: byte 0x8b at column 2 is not UTF-8; allowed is",
    ),
    "comma": (
        line('{"prompt": "a", }'),
        ":65: not valid JSON .*column 17.*allowed is one JSON object a line; correct it",
    ),
    "cut": (GOOD[:-9], ":64: not valid JSON"),
    "pretty": (json.dumps([json.loads(row) for row in LINES], indent=1).encode(), ":1: not valid JSON"),
    "array": (line('["a", "b"]'), ":65: got list .* allowed is a JSON object"),
    "text": (line('"a"'), ":65: got str"),
    "deep": (line("[" * 100_000), ":65: not valid JSON"),
    "twice": (line('{"prompt": "a", "prompt": "b", "answer": "1"}'), ":65: .*key 'prompt' stands twice"),
    "nan": (line('{"prompt": "a", "answer": "1", "level": NaN}'), ":65: .*NaN is not JSON"),
    "no answer": (line('{"prompt": "a"}'), ':65: field "answer" is missing, got .*; add "answer"'),
    "no prompt": (line('{"question": "a", "answer": "1"}'), ':65: field "prompt" is missing'),
    "empty answer": (line('{"prompt": "a", "answer": ""}'), """:65: field "answer" is ''; allowed is .*; fill it in"""),
    "empty prompt": (line('{"prompt": " ", "answer": "1"}'), ':65: field "prompt" is .* not blank'),
    "a number": (
        line('{"prompt": "a", "answer": 7}'),
        ':65: field "answer" is int 7; allowed is a string; put it in q',
    ),
    "null": (line('{"prompt": "a", "answer": null}'), ':65: field "answer" is NoneType None; allowed is a string'),
    # 20 letters of two bytes each, and what the template adds: a newline and the token <think>.
    "long prompt": (
        line(json.dumps({"prompt": "\u00e9" * 20, "answer": "1"})),
        ":65: prompt of 42 tokens with the template; allowed are at most 20; shorten it or set prompt_width=42",
    ),
    # </think>, <answer>, </answer> and the stop token are one token each, the answer is another.
    "long solution": (
        line(json.dumps({"prompt": "a", "answer": "1", "solution": "9" * 30})),
        ":65: solution and answer of 35 tokens with the template; allowed are at most 12; .*set completion_width=35",
    ),
    "two answers": (
        line('{"prompt": "1 or 1?", "answer": "3"}'),
        r":65: answer '3' to a prompt answered '1' at .*:10; allowed is one answer a prompt; correct or remove one",
    ),
    "one line": (LINES[0].encode(), "lines are held out|got no held-out line"),
}


@pytest.mark.parametrize("case", sorted(DATA_FILES))
def test_a_file_of_questions_that_cannot_be_used(case: str, home: Path, capsys: pytest.CaptureFixture[str]):
    content, sentence = DATA_FILES[case]
    (home / "data.jsonl").write_bytes(content)
    refused(capsys, 5, sentence, *train("data.path=data.jsonl"))
    assert not (home / "runs").exists()


def test_it_is_the_data_that_is_wrong_also_where_the_experiment_loads_it(home: Path, capsys):
    (home / "data.jsonl").write_bytes(line('{"prompt": "a"}'))
    (home / "other_experiment.py").write_text(EXPERIMENT.format(path="data.jsonl"), encoding="utf-8")
    refused(capsys, 5, r'data\.jsonl:65: field "answer" is missing', *train(file="other_experiment.py"))


def test_a_path_that_is_no_file(home: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(home / "pipe.jsonl")
    for path, why in (
        (".", "Is a directory"),
        ("none.jsonl", "No such file"),
        ("pipe.jsonl", "got a pipe or a device"),
        ("/dev/zero", "got a pipe or a device"),
        ("good.jsonl/x", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("", "No such file"),
    ):
        refused(capsys, 5, why, *train(f"data.path={path}"))
    assert not (home / "runs").exists()


SETTINGS = [
    ("train.group_size=1 recipe.grouping=", r"recipe\.grouping: got '', allowed by_prompt, .*: write for instance"),
    ("train.prompts=5 train.minibatches=2", "got 5, which 2 minibatches x 1 .* do not divide; .* numbers are 4 and 6"),
    ("train.microbatches=3", "got 4, which 1 minibatches x 3 micro-batches do not divide; .* 3 and 6"),
    ("mesh=data:3", "train.prompts: got 4, which 3 shards .* do not divide; the nearest valid numbers are 3 and 6"),
    ("mesh=data:2", "has 2 places but there are 8 devices; the sizes must multiply to 8, for instance"),
    ("mesh=date:8", "a mesh has no axis 'date'; axes are .*, nearest is 'data'"),
    ("mesh=data:two", "mesh: got 'two' for data, allowed is a value of type int: write for instance mesh=data:2"),
    ("train.chunk=0", r"train\.chunk: got 0, allowed None or >= 1"),
    ("train.steps=-1", r"train\.steps: got -1, allowed >= 0"),
    ("train.epochs=0", r"train\.epochs: got 0, allowed >= 1"),
    ("train.group_size=0", r"train\.group_size: got 0, allowed >= 1"),
    ("train.steps=1e1", r"train\.steps: got '1e1', allowed is a value of type int, >= 0: write .* train\.steps=10"),
    ("train.steps=many", r"allowed is a value of type int, >= 0: write for instance train\.steps=2"),
    ("train.steps=", r"train\.steps: got '', allowed is a value of type int"),
    ("train.steps=True", r"train\.steps: got 'True', allowed is a value of type int"),
    ("train.steps.x=1", r"train\.steps is 2, which has no settings of its own"),
    ("train.stpes=1", r"got 'stpes', allowed .*: did you mean train\.steps\? It is now 2"),
    ("trian.steps=1", "got 'trian', allowed .*: did you mean train"),
    ("train=1", r"holds a Train of steps, .*; allowed is a part of it: set for instance train\.steps"),
    ("train.steps", "allowed is path=value"),
    ("=1", "allowed is path=value"),
    ("train..steps=1", "allowed is path=value"),
    ("optimizer.learning_rate=0", r"optimizer\.learning_rate: got 0\.0, allowed > 0"),
    ("optimizer.learning_rate=-1e-3", r"optimizer\.learning_rate: got -0\.001, allowed > 0"),
    ("optimizer.learning_rate=nan", r"optimizer\.learning_rate: got 'nan', allowed is a value of type float, > 0"),
    ("optimizer.learning_rate=inf", r"optimizer\.learning_rate: got inf, allowed are finite numbers"),
    ("optimizer.schedule=cosin", r"optimizer\.schedule: got 'cosin', allowed constant, linear, cosine"),
    ("sampling.temperature=0", r"sampling\.temperature: got 0\.0, allowed > 0: greedy samples"),
    ("sampling.temperature=-1", r"[Ss]ampling\.temperature.* -1\.0[;,] allowed"),
    ("sampling.temperature=nan", r"sampling\.temperature: got 'nan', allowed is a value of type float"),
    ("sampling.temperature=inf", r"sampling\.temperature: got inf, allowed are finite numbers"),
    ("sampling.top_p=0", r"top_p is 0\.0; allowed is 0 < top_p <= 1"),
    ("sampling.top_p=1.5", r"top_p is 1\.5; allowed is 0 < top_p <= 1"),
    ("sampling.top_k=-1", "top_k is -1; allowed are 0 .no limit. and positive"),
    ("sampling.stop=", r"sampling\.stop: got nothing, allowed is at least \(\): write sampling\.stop=\(\) for none"),
    ("sampling.stop=999", r"sampling\.stop: got 999, allowed are ids of tokens, 0 to 261"),
    ("sampling.max_tokens=13", r"sampling\.max_tokens: got 13, allowed up to 12"),
    ("model.positions=20", r"model\.positions: got 20, allowed >= 32 for prompts of 20 .*: set model\.positions=32"),
    (
        "model.activation=gel",
        "model.activation: got 'gel', allowed silu, gelu, gelu_exact, relu: write for instance gelu",
    ),
    ("model.compute_dtype=floaty", "compute_dtype is 'floaty'; allowed are names of float types"),
    ("recipe.parts.0.term=dapo", r"parts\.0\.term: got 'dapo', but this setting holds the function ppo_clip with"),
    (
        "recipe.parts.0.term.lo=1",
        r"got 'lo', allowed .*, high, low, ratio: did you mean recipe\.parts\.0\.term\.low\? It is now 0\.2",
    ),
    ("recipe.parts.0.term.low=x", r"low: got 'x', allowed is a value of type float"),
    ("text_rewards.accuracy.1=inf", r"text_rewards\['accuracy'\]\[1\], its weight: got inf, allowed are finite"),
    ("text_rewards.acuracy.1=1", r"got 'acuracy', allowed accuracy, format: did you mean text_rewards\.accuracy"),
    ("evaluation.full_prompts=1", r"evaluation\.full_prompts: got 1, allowed >= evaluation\.prompts, 2"),
    ("evaluation.full_prompts=999", "got 999 held-out prompts; allowed are 1 to"),
    ("scoring.timeout_s=0", r"scoring\.timeout_s: got 0\.0, allowed > 0 seconds"),
    ("scoring.failure_share=nan", r"scoring\.failure_share: got 'nan', allowed is a value of type float"),
    ("seed=-1", "seed: got -1, allowed 0 to 2.31 - 1"),
    ("name=a/b", "name: got 'a/b', allowed are 1 to 80 letters"),
    ("warm_start=1", r"warm_start: got '1', but this setting holds None, which no text can give"),
    ("data.heldout_share=1", r"heldout_share: got 1\.0; allowed are 0 up to, not including, 1"),
    ("data.prompt={foo}", r"unknown field \{foo\}; allowed are"),
]


@pytest.mark.parametrize(("settings", "sentence"), SETTINGS, ids=[settings for settings, _ in SETTINGS])
def test_settings_that_cannot_be_run(settings: str, sentence: str, home: Path, capsys: pytest.CaptureFixture[str]):
    refused(capsys, 4, sentence, *train(*settings.split(" ")))
    assert not (home / "runs").exists()


def test_a_group_of_one_teaches_nothing(home: Path, capsys: pytest.CaptureFixture[str]):
    text = EXPERIMENT.format(path="good.jsonl").replace("grouping=mine", "grouping=by_prompt")
    (home / "other_experiment.py").write_text(text, encoding="utf-8")
    sentence = r"train\.group_size: got 1, allowed >= 2 with the advantage group_standardized"
    refused(capsys, 4, sentence, *train("train.group_size=1", file="other_experiment.py"))


def test_of_a_setting_given_twice_the_last_counts_and_it_is_said(home: Path, capsys: pytest.CaptureFixture[str]):
    flags = train("seed=1", "train.steps=3", "seed=2", "optimizer.learning_rate=1e-3", "train.prompts=4")
    assert cli.main([*flags, "--dry-run"]) == 0
    out, error = capsys.readouterr()
    assert error == "--set seed: got 1, 2; the last counts\n" and "\nseed = 2\n" in out


HEAD = (
    "from bad_experiment import EXPERIMENT as GIVEN\nfrom dataclasses import replace\nfrom functools import partial\n"
)
OWN = "EXPERIMENT = replace(GIVEN, text_rewards={**GIVEN.text_rewards, 'mine': %s})\n"
FILES: dict[str, tuple[str, str]] = {
    "syntax": (
        "x = 1\nif x\n",
        r"other_experiment\.py:2: SyntaxError: expected ':': if x; allowed is a file that Python",
    ),
    "zeros": ("x = 1\0", "SyntaxError: source code .*null bytes"),
    "raises": ("1 / 0", r"other_experiment\.py:1: ZeroDivisionError: division by zero; allowed"),
    "a value error": ("x = 1\nint('x')", r"other_experiment\.py:2: ValueError: invalid literal for int"),
    "leaves": ("import sys\nsys.exit(3)", r"other_experiment\.py:2: SystemExit: 3; allowed is a file that Python can"),
    "colours": ("raise RuntimeError('a\\x1b[31mb')", r":1: RuntimeError: a\[31mb; allowed"),
    "no experiment": ("x = 1", "got no EXPERIMENT, allowed is a file that defines one"),
    "another type": ("EXPERIMENT = {}", "EXPERIMENT holds a dict, allowed is a grpo_jax.Experiment"),
    "a list of variants": (HEAD + "EXPERIMENT = GIVEN\nVARIANTS = [GIVEN]", "VARIANTS is a list, allowed is a mapping"),
    "an unknown argument": (HEAD + "EXPERIMENT = replace(GIVEN, stps=3)", ":4: TypeError: .*'stps'"),
    "half a step": (
        HEAD + "EXPERIMENT = replace(GIVEN, train=replace(GIVEN.train, steps=2.5))",
        r"train\.steps: got 2\.5, allowed is a whole number",
    ),
    "a lambda in the recipe": (
        HEAD + "EXPERIMENT = replace(GIVEN, recipe=replace(GIVEN.recipe, grouping=lambda c, m: (c, m)))",
        r"recipe\.grouping is a lambda: .* Remedy: define a function in a module; bind its keywords",
    ),
    "a lambda for a reward": (
        HEAD + OWN % "(lambda record: 1.0, 1.0)",
        r"text_rewards\['mine'\]\[0\] is a lambda: .*Remedy",
    ),
    "a closure": (
        HEAD + "def make(w):\n    def inner(record):\n        return w\n    return inner\n" + OWN % "(make(1.0), 1.0)",
        r"text_rewards\['mine'\]\[0\] is the inner function make.<locals>.inner: .*Remedy: move it to the top",
    ),
    "a bound method": (
        HEAD + "class Mine:\n    def score(self, record):\n        return 1.0\n" + OWN % "(Mine().score, 1.0)",
        r"text_rewards\['mine'\]\[0\] is the bound method Mine.score: .*Remedy: use a function",
    ),
    "a positional argument": (
        HEAD + "def mine(record, w):\n    return w\n" + OWN % "(partial(mine, 1.0), 1.0)",
        r"text_rewards\['mine'\]\[0\] is a partial with the positional arguments \(1\.0,\): .*Remedy: bind by name",
    ),
    "no weight": (
        HEAD + "def mine(record):\n    return 1.0\n" + OWN % "mine",
        r"text_rewards\['mine'\]: got .* is a pair",
    ),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_files_that_hold_no_experiment(case: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    content, sentence = FILES[case]
    monkeypatch.syspath_prepend(str(home))
    (home / "other_experiment.py").write_text(content, encoding="utf-8")
    error = refused(capsys, 4, sentence, *train(file="other_experiment.py"))
    assert "\x1b" not in error and not (home / "runs").exists()


# A run that was there before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like `home` with a finished run of two steps in ``run``."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "good.jsonl").write_bytes(GOOD)
    (folder / "bad_experiment.py").write_text(EXPERIMENT.format(path="good.jsonl"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("grpo_jax.heldout.CHUNK", 4)
        assert cli.main([*train(), "--run-dir", "run"]) == 0
        yield folder
    sys.modules.pop("bad_experiment", None)


@pytest.fixture
def again(trained: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, in `home`."""
    monkeypatch.setattr("grpo_jax.heldout.CHUNK", 4)
    shutil.copytree(trained / "run", home / "run")
    run = home / "run"
    config(run, origin={"file": str(home / "bad_experiment.py"), "variant": None, "assignments": []})
    return run


GO_ON = [*train(), "--run-dir", "run"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run but those that a refusal may touch."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def config(run: Path, **changes: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


DAMAGE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "settings": (lambda run: config(run, settings=3), 4, r"config\.json is damaged or was edited; .*--fresh"),
    "no text": (lambda run: (run / "config.json").write_bytes(b"\xff\x00{"), 4, r"config\.json is damaged"),
    "a format to come": (lambda run: config(run, format=2), 4, "has format 2, .* allowed are up to 1: update grpo-jax"),
    "other data": (
        lambda run: (run.parent / "good.jsonl").write_bytes(line('{"prompt": "9?", "answer": "9"}')),
        4,
        r"the data file has changed: SHA-256 \w{12}, now \w{12}",
    ),
    "a line of nonsense": (
        lambda run: (run / "metrics.jsonl").write_bytes(b"nonsense\n" + (run / "metrics.jsonl").read_bytes()),
        5,
        r"metrics\.jsonl, line 1 is no JSON record: .* Repair or remove that line",
    ),
    "a shortened journal": (cut, 5, "lacks the lines of 1 of 2 GRPO steps, the first of them step 2, .* Restore it"),
    "no good checkpoint": (
        lambda run: [path.unlink() for path in (run / "checkpoints").glob("*/commit_success.txt")],
        5,
        r"holds checkpoints and none of them is good; .* start afresh in another run folder",
    ),
}


@pytest.mark.parametrize("case", sorted(DAMAGE))
def test_a_run_that_cannot_go_on(case: str, again: Path, capsys: pytest.CaptureFixture[str]):
    damage, code, sentence = DAMAGE[case]
    damage(again)
    before = content(again)
    refused(capsys, code, sentence, *GO_ON)
    after = content(again)
    # A bad checkpoint is put aside under another name; nothing is lost and nothing else is touched.
    assert sorted(after.values()) == sorted(before.values())
    assert after == before or case == "no good checkpoint"


def test_another_setting_is_shown_beside_that_of_the_run(again: Path, capsys: pytest.CaptureFixture[str]):
    before = content(again)
    error = refused(capsys, 4, "holds a run with other settings", *train("train.steps=3", "seed=1"), "--run-dir", "run")
    differences = ["  seed: the run has 0, this command 1", "  train.steps: the run has 2, this command 3"]
    assert error.splitlines()[1:3] == differences and "--fresh" in error and content(again) == before


def test_two_runs_in_one_folder(again: Path, capsys: pytest.CaptureFixture[str]):
    before = content(again)
    with sole_writer(again):
        for flags in ([], ["--fresh"]):
            refused(capsys, 4, rf"run is in use by process {os.getpid()} on .* use another run folder", *GO_ON, *flags)
    assert content(again) == before


def test_changed_code_is_named_and_goes_on_where_it_is_accepted(again: Path, capsys: pytest.CaptureFixture[str]):
    whole = (again / "metrics.jsonl").read_bytes()
    shutil.rmtree(again / "checkpoints" / "2")  # so that there is something left to do
    file = again.parent / "bad_experiment.py"
    file.write_text(file.read_text().replace("A grouping in the user's own file.", "The same in other words."))
    sentence = r"the code of the function bad_experiment\.mine has changed.*--accept-code-change goes on"
    before = content(again)
    refused(capsys, 4, sentence, *GO_ON)
    assert content(again) == before
    sys.modules.pop("bad_experiment", None)
    assert cli.main([*GO_ON, "--accept-code-change"]) == 0
    assert "goes on with code that has changed: bad_experiment.mine." in capsys.readouterr().err
    (entry,) = json.loads((again / "config.json").read_text())["history"]
    was, now = (
        json.loads(text)["source_digest"] for text in (before["config.json"], (again / "config.json").read_text())
    )
    assert entry == {"phase": "grpo", "step": 1, "functions": ["bad_experiment.mine"], "was": was, "is": now}
    assert was != now and (again / "metrics.jsonl").read_bytes() == whole  # the words were not part of the arithmetic
    sys.modules.pop("bad_experiment", None)
    assert cli.main(["sample", "run", "--samples", "1"]) == 0  # checkpoints of both kinds of code are those of the run


def test_other_versions_and_a_damaged_summary_are_no_obstacle(
    again: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    versions = json.loads((again / "config.json").read_text())["versions"]
    config(again, versions={**versions, "jax": "0.0.1"})
    (again / "summary.json").write_bytes(b"\xff{")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # which cannot spell all of the summary
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(GO_ON) == 0
    assert f"was begun with other versions: jax 0.0.1 -> {versions['jax']}. It goes on" in capsys.readouterr().err
    assert json.loads((again / "summary.json").read_text())["steps"] == 2


def test_a_run_without_its_checkpoints_says_that_it_begins_again(again: Path, capsys: pytest.CaptureFixture[str]):
    written = {name: read(again / name) for name in ("metrics.jsonl", "samples.jsonl")}
    shutil.rmtree(again / "checkpoints")
    assert cli.main(GO_ON) == 0
    assert "has no checkpoint: the run begins again" in capsys.readouterr().err
    for name, rows in written.items():
        assert read(again / name) == rows and read(again / f"{name}.superseded") == rows


# Processes


def process(*arguments: str, wrapped: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, started by a line of `wrapped`."""
    command = [sys.executable, "-m", "grpo_jax", *arguments]
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        ["bash", "-c", wrapped, "bash", *command],
        env={**os.environ, **paths, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("platform", ["cuda", "bogus"])
def test_devices_that_are_not_there(platform: str, home: Path):
    done = process(*train(), JAX_PLATFORMS=platform, CUDA_VISIBLE_DEVICES="")
    errors = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
    assert done.returncode == 4 and "Traceback" not in done.stderr and len(errors) == 1, done.stderr
    assert f"JAX_PLATFORMS: got '{platform}', which JAX cannot start (" in errors[0]
    assert "set JAX_PLATFORMS=cpu, or install jax for yours" in errors[0] and not (home / "runs").exists()


@pytest.mark.parametrize(
    ("wrapped", "code", "error"),
    [
        ('"$@" | head -1 > /dev/null; exit ${PIPESTATUS[0]}', 0, ""),
        ('"$@" >&-', 0, ""),
        ('"$@" 2>&-', 0, ""),
        ('"$@" >&- 2>&-', 0, ""),
        ('"$@" > /dev/full', 5, "error: standard output: No space left on device; allowed is a file"),
    ],
)
def test_readers_that_left(wrapped: str, code: int, error: str, again: Path):
    done = process("show", "run", "--samples", "best", wrapped=wrapped)
    assert done.returncode == code and done.stderr.startswith(error) and bool(done.stderr) == bool(error), done.stderr


LONG = ["--set", "train.steps=2000", "--set", "evaluation.every=2000", "--set", "saving.every=2000", "--run-dir", "new"]


def stopped(number: int, when: Callable[[], bool]) -> tuple[int, str]:
    """Code and stderr of a run that gets the signal `number` as soon as `when` says so."""
    root = str(Path(cli.__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "grpo_jax", *train(), *LONG]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not when() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(number)
        _, errors = running.communicate(timeout=300)
    return running.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compiling", "stepping"])
@pytest.mark.parametrize(("number", "code", "words"), [(2, 130, "interrupted; "), (15, 75, "stopped: SIGTERM")])
def test_a_run_that_is_stopped(number: int, code: int, words: str, moment: str, home: Path):
    metrics = home / "new" / "metrics.jsonl"
    moments = {
        "compiling": (home / "new" / "config.json").exists,
        "stepping": lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3,
    }
    returned, errors = stopped(number, moments[moment])
    assert returned == code and errors.startswith(words) and errors.count("\n") == 1, errors


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_of_a_run(home: Path, trained: Path):
    """A file may grow to 300 KiB and no further, which is what a full disk is to it; then there is space again."""
    sizes = "train.steps=12 train.prompts=16 train.group_size=4 evaluation.every=12"  # 64 rows of 600 bytes a step
    flags = [*train(*sizes.split(" ")), "--run-dir"]
    whole = process(*flags, "whole")
    assert whole.returncode == 0, whole.stderr
    full = process(*flags, "full", wrapped='ulimit -f 300; exec "$@"')
    assert full.returncode == 5 and "Traceback" not in full.stderr, full.stderr
    assert len(re.findall(r"^stopped: .*cannot be written|could not be saved", full.stderr, re.M)) == 1, full.stderr
    assert len(full.stderr) < 2000 and "then run the same command again" in full.stderr
    saved = [path for path in (home / "full" / "checkpoints").iterdir() if path.name.isdecimal()]
    assert saved
    then = process(*flags, "full")
    assert then.returncode == 0, then.stderr
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (home / "full" / name).read_bytes() == (home / "whole" / name).read_bytes()
