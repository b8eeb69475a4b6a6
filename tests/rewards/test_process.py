import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from grpo_jax.rewards.pool import locate
from grpo_jax.rewards.process import Lost, Process, StartError
from grpo_jax.rewards.text import Record, Score
from grpo_jax.rewards.worker import Settings, write_record
from tests.rewards import odd

SETTINGS = Settings(parent=os.getpid(), memory_mb=512, rewards=[locate(odd.trouble, name="trouble")])


def lot(*completions: str) -> bytes:
    wanted = ", ".join("[0]" for _ in completions)
    return f"[{wanted}]\n".encode() + b"".join(write_record(Record("q", text, (), "5")) for text in completions)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process(sys.path)
    made.start(SETTINGS)
    yield made
    made.end()


def test_scores_come_in_order_and_a_death_says_why(process: Process):
    process.send(lot("good", "none", "exit", "good"))
    assert process.receive(10.0) == Score(5.0)
    assert process.receive(10.0).status == "error" and process.scored == 2
    with pytest.raises(Lost, match="exit code 3") as lost:
        process.receive(10.0)
    assert lost.value.status == "error" and not lost.value.out_of_memory
    process.send(lot("good") * 10_000)
    with pytest.raises(Lost, match="exit code 3"):
        process.receive(10.0)


def test_what_has_come_counts_however_late_it_is_read(process: Process):
    process.send(lot("good", "hang"))
    time.sleep(0.3)
    assert process.receive(1e-9) == Score(5.0)
    start = time.monotonic()
    with pytest.raises(Lost, match=r"within 0\.1 s") as lost:
        process.receive(0.1)
    assert lost.value.status == "timeout" and 0.1 <= time.monotonic() - start < 2


def test_a_worker_takes_more_than_a_pipe_holds_while_it_scores(process: Process):
    texts = ["good" + "." * 50_000] * 20
    process.send(lot(*texts))
    process.send(lot(*texts))  # 2 MB in all
    assert [process.receive(10.0) for _ in range(40)] == [Score(5.0)] * 40


def test_a_refusal_of_memory_is_told_from_other_deaths(process: Process):
    process.send(lot("memory"))
    with pytest.raises(Lost, match="ran out of memory") as lost:
        process.receive(10.0)
    assert lost.value.out_of_memory


def test_a_kill_from_another_thread_ends_the_wait(process: Process):
    process.send(lot("hang"))
    threading.Timer(0.1, process.kill).start()
    start = time.monotonic()
    with pytest.raises(Lost, match="SIGKILL"):
        process.receive(30.0)
    assert time.monotonic() - start < 5


def test_a_process_killed_before_it_starts_does_not_start():
    process = Process(sys.path)
    process.kill()
    with pytest.raises(StartError, match="before it was started"):
        process.start(SETTINGS)
    process.end()


def test_an_interpreter_that_finds_no_library_says_so():
    process = Process(["/nowhere"])
    with pytest.raises(StartError, match="Error"):
        process.start(SETTINGS)
    process.end()
