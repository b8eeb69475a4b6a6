"""What a task is, and what can be done with any task: records of scored rows, the proof that sets are disjoint.

A task is a frozen dataclass of settings. Its methods are pure: `draw(seed, draws)` gives the prompts of the given draw
numbers and nothing else decides them, so that the only state of the data is how many draws were made. Arrays are numpy.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from grpo_jax.rewards.text import Record
from grpo_jax.text import Tokenizer
from grpo_jax.types import Prompts, Rollouts

SPLITS = ("train", "heldout")
_CHUNK = 1 << 14


class Demonstrations(NamedTuple):
    """Prompts with a completion for each to imitate in the supervised warm start."""

    prompts: Prompts
    tokens: np.ndarray  # i32[P, T], right-padded, the stop token included
    length: np.ndarray  # i32[P]


class Task(Protocol):
    """Draw numbers are i64[n] or i32[n] in [0, 2^31); `split` is "train" or "heldout"."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def digest(self) -> str:
        """sha256 of the data that the settings only name, or empty: a run does not go on with other data."""
        ...

    @property
    def prompt_width(self) -> int: ...

    @property
    def completion_width(self) -> int: ...

    def draw(self, seed: int, draws: np.ndarray, split: str = "train") -> Prompts:
        """The prompts of these draws: leaf shapes [n, prompt_width] and [n]."""
        ...

    def heldout(self, count: int | None, name: str = "heldout") -> Prompts:
        """`count` distinct problems that no training draw gives, the same in every run; `name` picks another set.

        None asks for all of them, which only a task of finitely many has.
        """
        ...

    def is_heldout(self, prompts: Prompts) -> np.ndarray:
        """bool[P], True where the problem belongs to the held-out class."""
        ...

    def demonstrations(self, seed: int, draws: np.ndarray) -> Demonstrations: ...

    def read_prompt(self, text: str) -> tuple[list[int], int | None]:
        """Token ids of a problem that a person typed, and the `row` that knows its answer, or None.

        Raises ValueError for what cannot be a prompt of this task, too long ones included.
        """
        ...

    def prompt_text(self, prompts: Prompts, index: int) -> str: ...

    def answers(self, prompts: Prompts) -> list[str]:
        """The right answer of every prompt, as text."""
        ...

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        """What else is known of every prompt."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A task that can also say what a right completion is."""

    def gold(self, prompts: Prompts) -> list[list[int] | None]:
        """Token ids of a right completion of every prompt, the stop token included; None where it knows none."""
        ...


def shown(task: Task, seed: int, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """The demonstrations of these very prompts, drawn with `seed`: tokens i32[P, T] and lengths i32[P].

    Raises ValueError where the demonstrations of a draw are those of another problem.
    """
    found = task.demonstrations(seed, np.asarray(prompts.draw))
    if _keys(found.prompts) != _keys(prompts):
        raise ValueError(
            f"train.demonstrations: got a {type(task).__name__}, which demonstrates other problems than it draws;"
            " allowed are tasks whose demonstrations answer the same draws: set train.demonstrations=0"
        )
    return found.tokens, found.length


def records(task: Task, rollouts: Rollouts) -> list[Record]:
    """One `Record` a row, for text rewards: decoded prompt and completion (without its stop token), right answer."""
    given = rollouts.prompts
    prompts = numpy_prompts(given.tokens, given.length, given.draw, given.row, given.label)
    prompt_texts = [task.prompt_text(prompts, index) for index in range(prompts.length.shape[0])]
    answers, metadata = task.answers(prompts), task.metadata(prompts)
    tokens, length = np.asarray(rollouts.tokens), np.asarray(rollouts.length)
    stopped, prompt = np.asarray(rollouts.stopped), np.asarray(rollouts.prompt)
    rows = []
    for n in range(tokens.shape[0]):
        row = tuple(tokens[n, : length[n]].tolist())
        content = row[:-1] if stopped[n] else row
        p = int(prompt[n])
        rows.append(
            Record(
                prompt=prompt_texts[p],
                completion=task.tokenizer.decode(content),
                tokens=row,
                answer=answers[p],
                metadata=metadata[p],
                stopped=bool(stopped[n]),
            )
        )
    return rows


def assert_disjoint(
    task: Task,
    heldout: Prompts,
    *,
    seed: int,
    draws: int,
    further: Mapping[str, Prompts] | None = None,
    draw: Callable[[int, np.ndarray], Prompts] | None = None,
) -> None:
    """Raise a ValueError unless `heldout` is distinct problems, none of which the first `draws` training draws give.

    Checks the problems themselves, and that class membership (a function of the problem alone) separates them, which
    covers every later draw and every seed too. The problems of `further` sets, by name, which belong to no class of
    this task, have to be distinct and none of those that are drawn. `draw` gives other training prompts than
    `task.draw`, such as those of draws by difficulty.
    """
    sets = {"": _distinct("held-out set", heldout)}
    sets |= {name: _distinct(f"heldout.{name}", prompts) for name, prompts in (further or {}).items()}
    inside = task.is_heldout(heldout)
    _refuse(task, heldout, ~inside)
    for start in range(0, draws, _CHUNK):
        train = (draw or task.draw)(seed, np.arange(start, min(start + _CHUNK, draws)))
        keys = _keys(train)
        for name, problems in sets.items():
            known = np.array([key in problems for key in keys], bool)
            _refuse(task, train, known if name else known | task.is_heldout(train), name)


def numpy_prompts(tokens: Any, length: Any, draw: Any, row: Any, label: Mapping[str, Any] | None = None) -> Prompts:
    """`Prompts` of numpy i32 arrays (each a copy), from arrays of any kind."""
    leaves: list[Any] = [np.array(leaf, np.int32) for leaf in (tokens, length, draw, row)]
    labels: dict[str, Any] = {name: np.array(leaf, np.int32) for name, leaf in (label or {}).items()}
    return Prompts(*leaves, label=labels)


def check_draws(draws: np.ndarray, split: str) -> np.ndarray:
    """`draws` as i64[n] after checking them and the name of the split."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; allowed are {SPLITS}")
    numbers = np.asarray(draws)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"draws: got {numbers.dtype} of shape {numbers.shape}; allowed is one axis of integers; use np.arange"
        )
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < 2**31:
        raise ValueError(f"draws: got {numbers.min()} to {numbers.max()}; allowed are 0 to 2^31 - 1")
    return numbers.astype(np.int64)


def _distinct(what: str, prompts: Prompts) -> set[bytes]:
    keys = _keys(prompts)
    if len(set(keys)) != len(keys):
        raise ValueError(f"{what}: {len(keys) - len(set(keys))} of {len(keys)} problems are repeated")
    return set(keys)


def _refuse(task: Task, prompts: Prompts, wrong: np.ndarray, name: str = "") -> None:
    if not wrong.any():
        return
    shown = repr(task.prompt_text(prompts, int(np.argmax(wrong))))
    if name:
        raise ValueError(
            f"heldout.{name} and training draws are not disjoint: got {shown} in both; allowed are problems that"
            " training does not draw: take it out of one of them"
        )
    raise ValueError(
        f"held-out set and training draws are not disjoint: got {shown} on the wrong side; allowed are problems of the"
        " held-out class in one and of the rest in the other; make the set with task.heldout"
    )


def _keys(prompts: Prompts) -> list[bytes]:
    tokens, length = np.asarray(prompts.tokens, np.int32), np.asarray(prompts.length)
    return [tokens[i, : length[i]].tobytes() for i in range(tokens.shape[0])]
