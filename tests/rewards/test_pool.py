"""A pool gives what `score` gives, whatever single rewards do to their process.

The rewards are in `tests/rewards/odd.py`. Nothing in it does more than hang, crash, ask for memory, fork or print.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from grpo_jax.lifeline import DataError, Exit
from grpo_jax.rewards.pool import Pool, locate
from grpo_jax.rewards.text import Record, Score, TextRewards, accuracy, r1_format, score
from tests.rewards import odd

LEVELS = ("easy", "hard")
GOOD: TextRewards = {
    "accuracy": (partial(accuracy, match="numeric", tolerance=0.1), 1.0),
    "format": (r1_format, 0.25),
    "level": (partial(odd.level, levels=LEVELS), -2.0),
    "length": (odd.length, 0.1),
}


def good_records(count: int) -> list[Record]:
    odd_texts = ("é\u2212", "\ud800", "\x00\x1b[2J\r\n", "", "</think><answer>1/3</answer>", "<answer>0.34")
    return [
        Record("q", odd_texts[n % 6], (n, 3), "1/3", {"level": LEVELS[n % 2], "more": [n, {"a": (n,)}]}, n % 5 > 0)
        for n in range(count)
    ]


def asked(*completions: str) -> list[Record]:
    """Record n has the answer n."""
    return [Record("q", completion, (), str(n)) for n, completion in enumerate(completions)]


def gone(process: int, seconds: float = 5.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for yet has ended too."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def imported(path: Path) -> ModuleType:
    """The module of a file of the user's, loaded as the command line does."""
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool({"trouble": (odd.trouble, 1.0)}, workers=2, timeout_s=2.0, memory_mb=512) as made:
        yield made


@pytest.mark.parametrize(("workers", "chunk"), [(1, None), (3, 1), (2, 7)])
def test_a_pool_gives_the_numbers_of_score_in_the_same_order(workers: int, chunk: int | None):
    records = good_records(31)
    want, want_scores = score(records, GOOD)
    assert len(set(want.outcome.tolist())) > 5 and {s.status for s in want_scores["accuracy"]} == {"ok", "unparsable"}
    with Pool(GOOD, workers=workers, chunk=chunk) as pool:
        reward, scores = pool.score(records)
        assert pool.replaced == {"timeout": 0, "error": 0}
    assert scores == want_scores
    np.testing.assert_array_equal(reward.outcome, want.outcome)
    np.testing.assert_array_equal(reward.valid, want.valid)
    assert {n: x.tolist() for n, x in reward.components.items()} == {n: x.tolist() for n, x in want.components.items()}
    assert reward.outcome.dtype == np.float32 and reward.valid.dtype == bool


LOST = {
    "hang": ("timeout", "no score within 2 s"),
    "segfault": ("error", "died of SIGSEGV"),
    "exit": ("error", "exit code 3"),
    "orphan": ("error", "exit code 4"),
    "memory": ("error", "more than 512 MB"),
}
FAILED = {
    "sys.exit": ("error", "SystemExit: 0"),
    "raise": ("error", "ZeroDivisionError"),
    "interrupt": ("error", "KeyboardInterrupt"),
    "none": ("error", "NoneType is not one finite number"),
    "nan": ("error", "not one finite number"),
    "text": ("error", "str is not one finite number"),
    "vector": ("error", "ndarray is not one finite number"),
    "huge": ("error", "int is not one finite number"),
    "status": ("error", "status 'fine' is none of"),
}
SCORED = {"fork": 1.0, "print": 1.0, "scalar": 1.0, "long": 1.0}


def test_what_a_reward_does_costs_its_own_record_only(pool: Pool):
    completions = [text for name in (*LOST, *FAILED, *SCORED) for text in (name, "good")]
    records = asked(*completions)
    before = sum(pool.replaced.values())
    reward, scores = pool.score(records)
    for n, (record, got) in enumerate(zip(records, scores["trouble"], strict=True)):
        status, detail = {**LOST, **FAILED}.get(record.completion, ("ok", ""))
        assert got.status == status and detail in got.detail, (record.completion, got)
        assert reward.valid[n] == (status == "ok")
        value = SCORED.get(record.completion, float(record.answer)) if status == "ok" else 0.0
        assert got.value == value and reward.outcome[n] == np.float32(value), record.completion
        assert len(got.detail) <= 4000
    # One worker for each record that takes one, and one more for each that is tried again in a fresh worker.
    assert len(LOST) <= sum(pool.replaced.values()) - before <= 2 * len(LOST) - 1
    assert pool.replaced["timeout"] == 1


def test_scores_depend_neither_on_the_number_of_workers_nor_on_who_scored_before():
    records = asked("good", "exit", "raise", "good", "segfault", "good", "exit")
    found = []
    for workers, chunk in ((1, 7), (3, 1)):
        with Pool({"trouble": (odd.trouble, 1.0)}, workers=workers, chunk=chunk) as pool:
            found.append(pool.score(records)[1])
    assert found[0] == found[1]


def test_a_worker_worn_out_by_other_records_costs_no_record():
    records = asked(*"abcdefgh")
    with Pool({"wears out": (odd.wears_out, 1.0)}, workers=1) as pool:
        reward, scores = pool.score(records)
        # Three records a process: 8 records need three of them, so two were replaced.
        assert pool.replaced == {"timeout": 0, "error": 2}
    assert reward.outcome.tolist() == list(range(8)) and reward.valid.all()
    assert {s.status for s in scores["wears out"]} == {"ok"}


def test_any_number_of_losses_is_outlived():
    records = asked(*("exit" if n % 3 else "good" for n in range(30)))
    with Pool({"trouble": (odd.trouble, 1.0)}, workers=2, chunk=5) as pool:
        reward, scores = pool.score(records)
    assert [s.status == "ok" for s in scores["trouble"]] == [n % 3 == 0 for n in range(30)]
    assert reward.outcome.tolist() == [n * (n % 3 == 0) for n in range(30)]


def test_what_else_writes_into_the_pipe_shifts_no_score_to_another_record(pool: Pool):
    reward, scores = pool.score(asked("good", "stuff", "good", "good"))
    assert [s.value for s in scores["trouble"]] == [0.0, 0.0, 2.0, 3.0]
    assert scores["trouble"][1].status == "error" and "pipe of the scores" in scores["trouble"][1].detail
    assert reward.valid.tolist() == [True, False, True, True]


def test_printing_takes_no_memory_of_the_parent(pool: Pool):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reward, _ = pool.score(asked("print", "print"))
    assert reward.outcome.tolist() == [1, 1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB, of 100 MB printed


def test_children_that_a_reward_forked_die_with_it(tmp_path: Path):
    file = tmp_path / "processes"
    record = Record("q", "x", (), "1", {"file": str(file)})
    with Pool({"forks": (odd.forks_and_hangs, 1.0)}, workers=1, timeout_s=0.5) as pool:
        _, scores = pool.score([record])
    assert scores["forks"] == (Score(0.0, "timeout", "no score within 0.5 s"),)
    worker, child = map(int, file.read_text(encoding="utf-8").split())
    assert gone(worker) and gone(child)


def test_one_reward_of_several_fails_alone_and_sees_its_own_copy_of_the_record():
    records = [Record("q", text, (), "5", {"level": "easy"}) for text in ("exit", "good")]
    rewards = {
        "second": (odd.second, 1.0),
        "trouble": (odd.trouble, 1.0),
        "level": (partial(odd.level, levels=LEVELS), 1),
    }
    with Pool(rewards, workers=1, chunk=6) as pool:
        reward, scores = pool.score(records)
    # The outcome of the second row: 1 of `second`, 5 of `trouble`, 0.5 * 0 of `level`.
    assert reward.valid.tolist() == [False, True] and reward.outcome[1] == 6.0
    assert [s.status for s in scores["trouble"]] == ["error", "ok"]
    assert [s.value for s in scores["second"]] == [1.0, 1.0] and {s.status for s in scores["level"]} == {"ok"}


def test_a_worker_is_alone_without_accelerator_jax_or_input():
    with Pool({"alone": (odd.alone, 1.0)}, workers=1) as pool:
        assert pool.score(asked("x"))[1]["alone"] == (Score(1.0),)


def test_submitting_returns_at_once_and_results_may_be_asked_for_in_any_order():
    with Pool({"nap": (partial(odd.nap, seconds=0.3), 1.0)}, workers=2) as pool:
        start = time.monotonic()
        one, two = pool.submit(asked("a", "b")), pool.submit(asked("c"))
        assert time.monotonic() - start < 0.2 and not one.done and not two.done
        assert two.result()[0].outcome.tolist() == [0.0]
        assert one.result()[0].outcome.tolist() == [0.0, 1.0] and one.done
        assert pool.score([])[0].outcome.shape == (0,)


def test_closing_ends_what_is_on_its_way(tmp_path: Path):
    file = tmp_path / "processes"
    pool = Pool({"forks": (odd.forks_and_hangs, 1.0)}, workers=2)
    handle = pool.submit([Record("q", "x", (), "1", {"file": str(file)})])
    while not file.exists() or not file.read_text(encoding="utf-8"):
        time.sleep(0.01)
    pool.close()
    with pytest.raises(DataError, match="closed before everything was scored"):
        handle.result()
    assert all(gone(int(process)) for process in file.read_text(encoding="utf-8").split())
    with pytest.raises(ValueError, match="after close"):
        pool.submit([])
    pool.close()


def test_metadata_that_cannot_be_sent_is_named_and_stops_nothing_else(pool: Pool):
    bad = Record("q", "good", (), "1", {"when": object()})
    with pytest.raises(ValueError, match=r"record 1: got <object object .* of type object in it"):
        pool.score([*asked("good"), bad])
    assert pool.score(asked("a", "b"))[0].outcome.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"workers": 0}, "workers: got 0, allowed >= 1"),
        ({"timeout_s": 0.0}, "timeout_s: got 0.0"),
        ({"timeout_s": float("inf")}, "timeout_s: got inf"),
        ({"memory_mb": 0}, "memory_mb: got 0"),
        ({"chunk": -1}, "chunk: got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Pool(GOOD, **settings)


def test_a_file_of_the_users_is_loaded_with_its_neighbours(tmp_path: Path):
    (tmp_path / "their_neighbour.py").write_text("BONUS = 2.5\n", encoding="utf-8")
    file = tmp_path / "math.py"  # the name of another module means nothing
    file.write_text(
        "import sys\nfrom pathlib import Path\nsys.path.append(str(Path(__file__).parent))\n"
        "from their_neighbour import BONUS\n\ndef mine(record, *, by=1):\n    return BONUS * by\n",
        encoding="utf-8",
    )
    spec = util.spec_from_file_location("a_file_of_theirs", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["a_file_of_theirs"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Pool({"mine": (partial(module.mine, by=2), 1.0), "one": (module.mine, 1.0)}, workers=1) as pool:
        assert pool.score(asked("x"))[0].outcome.tolist() == [7.5]  # 2 * 2.5 + 2.5


def test_a_file_that_cannot_be_loaded_is_a_value_error_with_the_traceback(tmp_path: Path):
    file = tmp_path / "broken_rewards.py"
    file.write_text("def mine(record):\n    return 1.0\n", encoding="utf-8")
    module = imported(file)
    for text, complaint in (
        ("import sys\nprint('about to fail', file=sys.stderr)\nimport there_is_no_such_module\n", "no_such_module"),
        ("def other(record):\n    return 1.0\n", "has no attribute 'mine'"),
        ("import os\nos.write(2, b'goodbye')\nos._exit(5)\n", r"exit code 5\ngoodbye"),
        ("import sys\nsys.exit('no')\n", "SystemExit: no"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=complaint) as error:
            Pool({"mine": (module.mine, 1.0)}, workers=1)
        assert "could not load 'mine'" in str(error.value)


def test_a_run_is_scored_by_one_version_of_a_file(tmp_path: Path):
    file = tmp_path / "changing_rewards.py"
    file.write_text("import os\n\ndef mine(record):\n    os._exit(1)\n", encoding="utf-8")
    module = imported(file)
    with Pool({"mine": (module.mine, 1.0)}, workers=1) as pool:
        file.write_text("def mine(record):\n    return 1.0\n", encoding="utf-8")
        with pytest.raises(DataError, match="was changed after the run began") as error:
            pool.score(asked("x", "y"))
        assert error.value.code == Exit.DATA
        with pytest.raises(ValueError, match="close"):
            pool.submit([])


class Judge:
    """Has a method, which no other process can call."""

    def method(self, record: Record) -> float:
        return 1.0

    @staticmethod
    def function(record: Record) -> float:
        return 1.0


def inner() -> Callable[[Record], float]:
    def reward(record: Record) -> float:
        return 1.0

    return reward


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (lambda record: 1.0, "no name of its own; .* move it to the top"),
        (inner(), "<locals>.reward, which has no name of its own"),
        (Judge().method, "bound method"),
        (Judge(), "write a function"),
        (partial(odd.anything, "record"), "positional arguments"),
        (partial(odd.anything, match=np.ones(2)), r"a keyword that holds array"),
    ],
)
def test_a_reward_that_no_other_process_can_find_is_refused(reward: Any, complaint: str):
    with pytest.raises(ValueError, match=rf"text_rewards\['mine'\]: got .*{complaint}"):
        locate(reward, name="mine")


def test_functions_of_classes_and_partials_of_partials_are_found():
    assert locate(Judge.function, name="x")["function"] == "Judge.function"
    address = locate(partial(partial(accuracy, match="exact", tolerance=1.0), match="numeric"), name="x")
    assert (address["module"], address["function"]) == ("grpo_jax.rewards.text", "accuracy")
    assert address["keywords"] == {"match": "numeric", "tolerance": 1.0}


SCRIPT = """
import os, sys, time
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record

assert __name__ != "__main__" or len(sys.argv) == 2
STARTED = __name__ == "__main__"

def who(record):
    if record.completion == "hang":
        time.sleep(60)
    return float(os.getpid()) if not STARTED else -1.0

if __name__ == "__main__":
    pool = Pool({"who": (who, 1.0)}, workers=1)
    print(int(pool.score([Record("q", "x", (), "1")])[1]["who"][0].value), flush=True)
    pool.score([Record("q", sys.argv[1], (), "1")])
    time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "hang"])
def test_workers_of_a_script_that_is_killed_end_with_it(tmp_path: Path, root: Path, state: str):
    script = tmp_path / "a_script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert worker > 0 and not gone(worker, 0.1)
        process.send_signal(signal.SIGKILL)
    assert gone(worker)
