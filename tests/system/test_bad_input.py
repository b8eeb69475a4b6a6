"""Bad input, as a user would give it: one message with the way out, the right code, nothing begun and nothing lost.

What fails before anything is compiled is tried in this process, through the whole command line. The run that the cases
about folders begin with is trained once.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_jax import cli

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
    assert re.search("allowed|valid numbers|Remedy|must multiply|axes are|[Rr]estore|same command|use ", error), error
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
    ("train.group_size=1 recipe.grouping=", r"recipe\.grouping: got '', but this setting holds the function mine"),
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
    ("model.activation=gel", "model.activation: got 'gel', allowed silu, gelu, relu: write for instance gelu"),
    ("model.compute_dtype=floaty", "compute_dtype is 'floaty'; allowed are names of float types"),
    ("recipe.parts.0.term=dapo", r"parts\.0\.term: got 'dapo', but this setting holds the function ppo_clip with"),
    (
        "recipe.parts.0.term.lo=1",
        r"got 'lo', allowed .*, high, low: did you mean recipe\.parts\.0\.term\.low\? It is now 0\.2",
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
