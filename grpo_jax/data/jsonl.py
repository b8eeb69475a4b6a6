r"""Questions and answers from a JSONL file, in R1 style, on bytes or on the tokens of a published model.

A line is ``{"prompt": str, "answer": str, "solution": str (optional), ...}``; other keys are metadata. The policy
reads ``question\n<think>``, or the question in the chat template of its tokenizer; a demonstration for the warm start,
made from the lines that have a solution, is ``solution</think><answer>answer</answer>`` and the token of the end.
Everything is validated and encoded once, when the task is made: an error names file and line.

The order of an epoch is a permutation computed from (seed, epoch), one element at a time, so that the prompt of draw k
is a function of (seed, k): epoch ``k // n``, element ``k % n`` of the n lines of the split.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from grpo_jax.data.counter import permuted, text_hash
from grpo_jax.data.lines import Line, label_codes, read_lines
from grpo_jax.data.tasks import Demonstrations, check_draws, numpy_prompts
from grpo_jax.lifeline import BadData
from grpo_jax.rewards import text
from grpo_jax.text import ByteTokenizer, Chat, PretrainedTokenizer, Tokenizer, check_template, fill_all
from grpo_jax.text.chat import QuestionError
from grpo_jax.text.tokenizers import TAGS
from grpo_jax.types import Prompts

_PROMPT = "{prompt}\n<think>"
_TRAIN, _HELDOUT, _DEMONSTRATION = range(3)


@dataclass(frozen=True)
class Jsonl:
    """Settings of the task. `Prompts.row` is an index into `lines`: those of `path`, then those of a held-out file."""

    path: str
    prompt_width: int = 128
    """Tokens of the longest prompt, template included."""
    completion_width: int = 64
    """Tokens of a completion; every demonstration must fit."""
    heldout_share: float = 0.1
    """Share of the lines of `path` that are held out, chosen by a hash of the prompt; 0 with `heldout_path`."""
    heldout_path: str | None = None
    """A second file to hold out instead; none of its prompts may be in `path`."""
    prompt: str = _PROMPT
    completion: str = "{solution}</think><answer>{answer}</answer>"
    labels: tuple[str, ...] = ()
    """Keys of the lines that become `Prompts.label`, each the place of its value among the sorted ones of the file."""
    tokenizer: Tokenizer = ByteTokenizer()
    """What makes token ids of text: bytes, or a published tokenizer, `PretrainedTokenizer(path)`."""
    chat: Chat | None = None
    """With it the policy reads the question in the chat template of a published tokenizer, and not in `prompt`."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of lines that do not fit: the run is refused, or those with too long a prompt or answer are left out
    (`dropped`) and solutions that are too long not shown (`unshown`). Nothing is ever cut."""

    def __post_init__(self) -> None:
        self._check_settings()
        self._check_lengths()
        self._check_split()
        self._check_labels()

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every line of the one or two files, validated; with ``too_long="drop"`` those that fit."""
        return self._encoded.lines

    @property
    def dropped(self) -> tuple[Line, ...]:
        """The lines that ``too_long="drop"`` leaves out: their prompt or their answer does not fit."""
        return self._encoded.dropped

    @property
    def unshown(self) -> int:
        """Lines whose solution ``too_long="drop"`` does not demonstrate, because it does not fit."""
        solved = sum(line.solution is not None for line in self.lines)
        return solved - int(self._encoded.shown.sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the files, those of the tokenizer included: a run that resumes on other ones can be refused."""
        digest = hashlib.sha256(Path(self.path).read_bytes())
        if self.heldout_path is not None:
            digest.update(hashlib.sha256(Path(self.heldout_path).read_bytes()).digest())
        digest.update(self.tokenizer.digest.encode())
        return digest.hexdigest()

    def draw(self, seed: int, draws: np.ndarray, split: str = "train") -> Prompts:
        """The prompts of these draws; each line of the split comes once an epoch."""
        numbers = check_draws(draws, split)
        rows, stream = (self._train_rows, _TRAIN) if split == "train" else (self._heldout_rows, _HELDOUT)
        return self._prompts(_in_epochs(rows, seed, stream, numbers), numbers)

    def class_shares(self) -> np.ndarray:
        """f64[C]: a class is a training line, and each comes as often as the others."""
        return np.full(len(self._train_rows), 1 / len(self._train_rows))

    def class_of(self, row: np.ndarray) -> np.ndarray:
        """i64[P], the place among the training lines of the line that each number is of."""
        return np.searchsorted(self._train_rows, row).astype(np.int64)

    def draw_class(self, seed: int, draws: np.ndarray, classes: np.ndarray) -> Prompts:
        """The training line that is asked for, as the draw of that number; there are no epochs."""
        del seed  # a line is one problem
        return self._prompts(self._train_rows[classes], check_draws(draws, "train"))

    def drawable(self, seed: int, draws: np.ndarray) -> Prompts:
        """Every training line."""
        every = np.arange(len(self._train_rows) if len(draws) else 0, dtype=np.int64)
        return self.draw_class(seed, every, every)

    def heldout(self, count: int | None, name: str = "heldout") -> Prompts:
        """`count` distinct held-out prompts (None: all), the same in every run; `name` picks another order of them."""
        rows = self._heldout_rows
        count = len(rows) if count is None else count
        if len(rows) and not 1 <= count <= len(rows):
            raise ValueError(
                f"count: got {count} held-out prompts; allowed are 1 to {len(rows)}, as many as {self.path} holds out;"
                " ask for fewer, raise heldout_share or give heldout_path"
            )
        numbers = np.arange(count, dtype=np.int64)
        return self._prompts(_in_epochs(rows, text_hash(name), _HELDOUT, numbers), numbers)

    def is_heldout(self, prompts: Prompts) -> np.ndarray:
        """bool[P], True where the line of the prompt is held out."""
        return self._heldout_class[np.asarray(prompts.row)]

    def demonstrations(self, seed: int, draws: np.ndarray) -> Demonstrations:
        """Training prompts with their solution and answer; lines without a solution are not drawn."""
        rows = self._solved_rows
        if not len(rows):
            raise ValueError(
                f'{self.path}: no training line has a "solution"; a warm start needs some; add them, or go without'
                " one (warm_start=None)"
            )
        numbers = check_draws(draws, "train")
        chosen = _in_epochs(rows, seed, _DEMONSTRATION, numbers)
        ids = [self._encoded.completions[row] for row in chosen.tolist()]
        return Demonstrations(self._prompts(chosen, numbers), *self._padded(ids, self.completion_width))

    def gold(self, prompts: Prompts) -> list[list[int] | None]:
        """Token ids of a right completion of every prompt: its solution, where it has one, and its answer."""
        return [self._encoded.completions[row].tolist() for row in np.asarray(prompts.row).tolist()]

    def read_prompt(self, text: str) -> tuple[list[int], int | None]:
        """Ids of a question put into the template; its row where a line of the data asks the same."""
        ids = self._asked([text])[0].tolist()
        if len(ids) > self.prompt_width:
            raise ValueError(
                f"prompt: got {text[:80]!r} of {len(ids)} tokens with the template; allowed are at most"
                f" {self.prompt_width}; shorten it"
            )
        return ids, next((row for row, line in enumerate(self.lines) if line.prompt == text), None)

    def prompt_text(self, prompts: Prompts, index: int) -> str:
        length = int(prompts.length[index])
        return self.tokenizer.decode(np.asarray(prompts.tokens)[index, :length].tolist())

    def answers(self, prompts: Prompts) -> list[str]:
        return [self.lines[row].answer for row in np.asarray(prompts.row).tolist()]

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        """The other keys of each line."""
        return [self.lines[row].metadata for row in np.asarray(prompts.row).tolist()]

    def text_rewards(
        self, *, format_weight: float = 0.2, match: str = "exact", tolerance: float = 0.0, spaces: bool = False
    ) -> text.TextRewards:
        """Name -> (function, weight): 1 for the right answer plus `format_weight` for the format.

        `spaces` allows white space between the tags: what a published model writes, to which they are text.
        """
        accuracy = partial(text.accuracy, match=match, tolerance=tolerance)
        form = partial(text.r1_format, spaces=True) if spaces else text.r1_format
        return {"accuracy": (accuracy, 1.0), "format": (form, format_weight)}

    @cached_property
    def _heldout_class(self) -> np.ndarray:
        """bool[lines], True where the line is held out."""
        if self.heldout_path is not None:
            return np.array([line.path == self.heldout_path for line in self.lines], bool)
        bound = int(self.heldout_share * 2**64)
        return np.array([text_hash(line.prompt) < bound for line in self.lines], bool)

    @cached_property
    def _codes(self) -> dict[str, np.ndarray]:
        """Name of a label -> i32[lines]."""
        return {name: label_codes(self.lines, name) for name in self.labels}

    @cached_property
    def _train_rows(self) -> np.ndarray:
        return np.flatnonzero(~self._heldout_class)

    @cached_property
    def _solved_rows(self) -> np.ndarray:
        return self._train_rows[self._encoded.shown[self._train_rows]]

    @cached_property
    def _heldout_rows(self) -> np.ndarray:
        """Rows of distinct held-out prompts, the first of equal ones."""
        first: dict[str, int] = {}
        for row in np.flatnonzero(self._heldout_class).tolist():
            first.setdefault(self.lines[row].prompt, row)
        return np.array(list(first.values()), np.int64)

    @cached_property
    def _every(self) -> tuple[Line, ...]:
        """Every line, those that are dropped included."""
        tags = tuple(dict.fromkeys((*TAGS, *self.tokenizer.special)))
        held = read_lines(self.heldout_path, tags) if self.heldout_path is not None else []
        return (*read_lines(self.path, tags), *held)

    @cached_property
    def _encoded(self) -> "_Encoded":
        """The lines with their ids, all of them encoded once."""
        every = self._every
        try:
            prompts = self._asked([line.prompt for line in every])
        except QuestionError as error:
            line = every[error.index]
            raise BadData(f"{line.path}:{line.number}: {error}") from None
        completions = self._said([(line.solution or "", line.answer) for line in every])
        shown = [line.solution is not None for line in every]
        fits = [True] * len(every)
        if self.too_long == "drop":
            wide = [row for row, ids in enumerate(completions) if len(ids) > self.completion_width]
            # The answer alone can still be right, and GRPO needs no solution.
            for row, ids in zip(wide, self._said([("", every[row].answer) for row in wide]), strict=True):
                completions[row], shown[row] = ids, False
            limits = (self.prompt_width, self.completion_width)
            fits = [len(p) <= limits[0] and len(c) <= limits[1] for p, c in zip(prompts, completions, strict=True)]
        kept = [row for row, fit in enumerate(fits) if fit]
        return _Encoded(
            lines=tuple(every[row] for row in kept),
            dropped=tuple(line for line, fit in zip(every, fits, strict=True) if not fit),
            prompts=[prompts[row] for row in kept],
            completions=[completions[row] for row in kept],
            shown=np.array([shown[row] for row in kept], bool),
        )

    def _said(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """i32[tokens] of completions made of a solution and an answer each, the stop token included."""
        values = [{"solution": solution, "answer": answer} for solution, answer in pairs]
        end = np.array([self.tokenizer.eos], np.int32)
        return [np.concatenate([ids, end]) for ids in fill_all(self.completion, values, self.tokenizer)]

    def _asked(self, questions: Sequence[str]) -> list[np.ndarray]:
        """i32[tokens] of the prompts that these questions make."""
        if self.chat is None:
            return fill_all(self.prompt, [{"prompt": question} for question in questions], self.tokenizer)
        return self.chat.encode(questions, _published(self.tokenizer))

    def _prompts(self, rows: np.ndarray, numbers: np.ndarray) -> Prompts:
        tokens, length = self._padded([self._encoded.prompts[row] for row in rows.tolist()], self.prompt_width)
        label = {name: codes[rows] for name, codes in self._codes.items()}
        return numpy_prompts(tokens, length, numbers, rows, label)

    def _padded(self, ids: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(ids), width), self.tokenizer.pad, np.int32)
        for row, line in zip(tokens, ids, strict=True):
            row[: len(line)] = line
        return tokens, np.array([len(line) for line in ids], np.int32)

    def _check_settings(self) -> None:
        if self.too_long not in ("refuse", "drop"):
            raise ValueError(f"Jsonl.too_long: got {self.too_long!r}; allowed are 'refuse' and 'drop': choose one")
        if self.chat is not None:
            _published(self.tokenizer)
            if self.prompt != _PROMPT:
                raise ValueError(
                    f"Jsonl.prompt: got {self.prompt!r} and a chat; allowed is one of them: put the words around the"
                    " question into chat.question, what the assistant begins with into chat.prefix"
                )
        check_template(self.prompt, ("prompt",), "Jsonl.prompt")
        check_template(self.completion, ("solution", "answer"), "Jsonl.completion")
        for name in ("prompt_width", "completion_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"Jsonl.{name}: got {getattr(self, name)}; allowed is 1 or more tokens")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"Jsonl.heldout_share: got {self.heldout_share}; allowed are 0 up to, not including, 1")
        if self.heldout_path is not None and self.heldout_share:
            raise ValueError(
                f"Jsonl: got both heldout_path={self.heldout_path!r} and heldout_share={self.heldout_share}; allowed is"
                " one of them; set heldout_share=0 to hold out the second file"
            )

    def _check_labels(self) -> None:
        repeated = sorted({name for name in self.labels if self.labels.count(name) > 1})
        if repeated:
            raise ValueError(f"Jsonl.labels: got {repeated[0]!r} twice; allowed is every key once; remove one")
        for name in self.labels:
            label_codes(self.lines, name)

    def _check_lengths(self) -> None:
        if not self.lines:
            raise BadData(
                f"{self.path}: all {len(self.dropped)} lines were dropped, because they do not fit in prompts of"
                f" {self.prompt_width} and completions of {self.completion_width} tokens; allowed are widths that some"
                " fit in; raise prompt_width or completion_width"
            )
        for what, every, name, width in (
            ("prompt", self._encoded.prompts, "prompt_width", self.prompt_width),
            ("solution and answer", self._encoded.completions, "completion_width", self.completion_width),
        ):
            longest = max(map(len, every))
            wide = [line for line, ids in zip(self.lines, every, strict=True) if len(ids) > width]
            for line, ids in zip(self.lines, every, strict=True):
                if len(ids) > width:
                    raise BadData(
                        f"{line.path}:{line.number}: {what} of {len(ids)} tokens with the template; allowed are at most"
                        f" {width}; shorten it or set {name}={len(ids)}"
                        + (f" ({len(wide)} lines are too long; {name}={longest} fits all)" if len(wide) > 1 else "")
                        + ', or leave out what does not fit: too_long="drop"'
                    )

    def _check_split(self) -> None:
        seen: dict[str, Line] = {}
        for line, held in zip(self.lines, self._heldout_class, strict=True):
            first = seen.setdefault(line.prompt, line)
            if first.answer != line.answer:
                raise BadData(
                    f"{line.path}:{line.number}: answer {line.answer!r} to a prompt answered {first.answer!r} at"
                    f" {first.path}:{first.number}; allowed is one answer a prompt; correct or remove one of the lines"
                )
            if held and self.heldout_path is not None and first.path != line.path:
                raise BadData(
                    f"{line.path}:{line.number}: held-out prompt is also a training prompt at"
                    f" {first.path}:{first.number}; the two files must not share a prompt; remove one of the lines"
                )
        if not len(self._train_rows):
            raise BadData(
                f"{self.path}: all {len(self.lines)} lines are held out; lower heldout_share or add lines to the file"
            )


class _Encoded(NamedTuple):
    lines: tuple[Line, ...]
    dropped: tuple[Line, ...]
    prompts: list[np.ndarray]  # i32[tokens] each
    completions: list[np.ndarray]  # i32[tokens] each, the stop token included
    shown: np.ndarray  # bool[lines], True where the completion has a solution


def _published(tokenizer: Tokenizer) -> PretrainedTokenizer:
    """`tokenizer`, which has to bring a chat template."""
    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer
    raise ValueError(
        f"Jsonl.chat: got one with a {type(tokenizer).__name__}, which has no chat template; allowed is a published"
        " tokenizer: set tokenizer=PretrainedTokenizer(path), or chat=None"
    )


def _in_epochs(rows: np.ndarray, seed: int, stream: int, numbers: np.ndarray) -> np.ndarray:
    """The row of each draw: element ``k % n`` of the permutation of epoch ``k // n``."""
    if not len(rows):
        raise BadData("split: got no held-out line; allowed is at least one; raise heldout_share or give heldout_path")
    return rows[permuted(numbers % len(rows), len(rows), seed, stream, numbers // len(rows))]
