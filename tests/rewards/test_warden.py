"""Nothing that a reward starts outlives its worker, however that ends, even if it has left every group and parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record
from grpo_jax.rewards.warden import descendants, end_descendants
from tests.rewards import odd


def ended(process: int, seconds: float = 10.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for yet has ended too."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def number_in(file: Path) -> int:
    """The number of a process that is written into a file."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        if file.exists() and file.read_text(encoding="utf-8"):
            return int(file.read_text(encoding="utf-8"))
        time.sleep(0.02)
    raise TimeoutError(f"nothing is written into {file}")


def test_descendants_are_found_through_their_parents_and_ended():
    with subprocess.Popen(["sh", "-c", "(sleep 60 & sleep 60; true) & wait"]) as shell:
        limit = time.monotonic() + 30
        while len(descendants(shell.pid)) < 3 and time.monotonic() < limit:
            time.sleep(0.02)
        below = descendants(shell.pid)
        assert len(below) == 3 and below < descendants(os.getpid()) and shell.pid not in below
        end_descendants(shell.pid)
        assert shell.wait(30) == 0  # the shell itself lives, and has waited for the others
    assert all(ended(process) for process in below)
    assert descendants(shell.pid) == set()


@pytest.mark.parametrize("how", ["hang", "segfault", "exit", "return"])
def test_a_program_that_a_reward_let_go_ends_with_the_worker(tmp_path: Path, how: str):
    file = tmp_path / "process"
    with Pool({"lets go": (odd.lets_go, 1.0)}, workers=1, timeout_s=1.0) as pool:
        _, scores = pool.score([Record("q", how, (), "1", {"file": str(file)})])
        status = {"hang": "timeout", "return": "ok"}.get(how, "error")
        assert scores["lets go"][0].status == status, scores
        program = number_in(file)
        assert how != "return" or not ended(program, 0.1)
    assert ended(program)


def test_the_death_of_a_worker_is_told_as_it_was(tmp_path: Path):
    told = {"segfault": "died of SIGSEGV", "exit": "exit code 3", "memory": "more than 256 MB"}
    records = [Record("q", how, (), "1", {"file": str(tmp_path / how)}) for how in told]
    with Pool({"lets go": (odd.lets_go, 1.0)}, workers=1, memory_mb=256) as pool:
        _, scores = pool.score(records)
    assert [text in score.detail for text, score in zip(told.values(), scores["lets go"], strict=True)] == [True] * 3


SCRIPT = """
import sys, time
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record
from tests.rewards import odd

if __name__ == "__main__":
    pool = Pool({"lets go": (odd.lets_go, 1.0)}, workers=1)
    pool.score([Record("q", sys.argv[2], (), "1", {"file": sys.argv[1]})])
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["return", "hang"])
def test_a_program_that_a_reward_let_go_ends_when_the_run_is_killed(tmp_path: Path, root: Path, how: str):
    script, file = tmp_path / "a_script.py", tmp_path / "process"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script), str(file), how], env=environment) as process:
        program = number_in(file)
        assert not ended(program, 0.1)
        process.send_signal(signal.SIGKILL)
    assert ended(program)
