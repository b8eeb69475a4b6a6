"""Chats: a question in the words of a model's chat template, token for token as transformers' apply_chat_template.

A template is a program that comes with a checkpoint. It runs in jinja's sandbox, in a process of its own with limits of
time, memory and output (`grpo_jax.text.render`). Questions go through it as they are, so that it may trim them or look
at them; but names of control tokens inside them are broken by a mark before and mended after it, and what comes back
has to hold the control tokens of the template alone.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from grpo_jax.text import files, renamed
from grpo_jax.text.pretrained import PretrainedTokenizer
from grpo_jax.text.templates import check_template

SECONDS = 10
"""Processor seconds that a process may take."""
SECONDS_A_CHAT = 0.01
"""How much more it may for each chat; one takes 0.0001 or so."""
MEGABYTES = 1024
TOGETHER = 1 << 14
CHARACTERS = 1 << 24
"""Chats, and characters of their messages, that one process renders."""
_PROBE = "question"
_PROGRAM = Path(__file__).with_name("render.py")


class QuestionError(ValueError):
    """A question of which a template makes something else than a quotation; `index` is its place among those given."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Chat:
    """How a question becomes the chat that a model continues; the rest is its template's."""

    system: str | None = None
    """The system message; None: there is none, or the one that the template brings."""
    question: str = "{prompt}"
    """The user's message around the question; special tokens are recognised in these words, never in the question."""
    prefix: str = ""
    r"""What the assistant has already said, such as ``"<think>\n"``; special tokens are recognised."""
    template: str | None = None
    """Name of the template where the tokenizer has several; None: the one called "default", or the only one."""
    options: Mapping[str, int | float | bool | str] = field(default_factory=dict, hash=False)
    """Further variables of the template, such as ``{"enable_thinking": False}``."""
    date: str = "2024-07-26"
    """What a template is told that asks for today's date: a run must be the same on every day."""

    def __post_init__(self) -> None:
        check_template(self.question, ("prompt",), "Chat.question")
        if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", self.date):
            raise ValueError(f"Chat.date: got {self.date!r}; allowed is a day such as 2024-07-26: write it so")
        taken = sorted(set(self.options) & {"messages", "add_generation_prompt", "tools", "documents"})
        if taken:
            raise ValueError(
                f"Chat.options: got {taken[0]!r}, which the library decides; allowed are other variables of the"
                " template: leave it out"
            )

    def text(self, question: str, tokenizer: PretrainedTokenizer) -> str:
        """The chat as text, up to where the assistant goes on."""
        return self._rendered([question], tokenizer)[0].replace(renamed.MARK, "")

    def encode(self, questions: Sequence[str], tokenizer: PretrainedTokenizer) -> list[np.ndarray]:
        """i32[tokens] of the chats, up to where the assistant goes on.

        Raises ValueError where the tokenizer has no such template or the template does not do its work within its
        limits, QuestionError where a question changes which control tokens the chat holds.
        """
        return tokenizer.encode_marked(self._rendered(questions, tokenizer))

    def _rendered(self, questions: Sequence[str], tokenizer: PretrainedTokenizer) -> list[str]:
        """The chats as text in which control tokens of questions are broken by a mark."""
        variables = {**tokenizer.variables, "tools": None, "documents": None, **self.options}
        variables["add_generation_prompt"] = True
        given = {"template": self._source(tokenizer), "variables": variables, "date": self.date}
        chats = [self._messages(question, tokenizer) for question in (_PROBE, *questions)]
        texts = [text for some in _batches(chats) for text in _render(given, some)]
        if _PROBE not in texts[0]:
            raise ValueError(
                f"{tokenizer.path}: the chat template leaves the question out: {texts[0][:200]!r}; allowed is one that"
                " shows the message of the user: choose another with chat.template, or correct the template"
            )
        wanted = tokenizer.controls(texts[0])
        for index, (question, chat, text) in enumerate(zip(questions, chats[1:], texts[1:], strict=True)):
            found = tokenizer.controls(text)
            lost = renamed.MARK in chat[-1]["content"] and renamed.MARK not in text
            if found != wanted or lost:
                raise QuestionError(
                    f"question: got {question[:80]!r}, around which the chat template writes the control tokens"
                    f" {found[:20]} and not {wanted[:20]}; allowed are questions that it only quotes: change or remove"
                    " this one",
                    index,
                )
        return [text + self.prefix for text in texts[1:]]

    def _messages(self, question: str, tokenizer: PretrainedTokenizer) -> list[dict[str, str]]:
        before, after = map(renamed.safe, self.question.split("{prompt}"))
        asked = f"{before}{tokenizer.marked(question)}{after}"
        messages = [("system", None if self.system is None else renamed.safe(self.system)), ("user", asked)]
        return [{"role": role, "content": text} for role, text in messages if text is not None]

    def _source(self, tokenizer: PretrainedTokenizer) -> str:
        """The template."""
        known = tokenizer.templates
        name = self.template or (files.DEFAULT if files.DEFAULT in known or len(known) != 1 else next(iter(known)))
        if not known:
            raise ValueError(
                f"{tokenizer.path}: got no chat template; allowed is one in {files.TEMPLATE} or {files.CONFIG}: take an"
                " instruction-tuned checkpoint, put a template there, or set chat=None and write the prompt as text"
            )
        if name not in known:
            raise ValueError(
                f"{tokenizer.path}: got no chat template called {name!r}; allowed are {', '.join(sorted(known))}: set"
                " chat.template to one of these"
            )
        return known[name]


def _batches(chats: Sequence[Sequence[Mapping]]) -> Iterator[list[Sequence[Mapping]]]:
    """Chats in the order given, as many as one process renders."""
    some, size = [], 0
    for chat in chats:
        length = sum(len(message["content"]) for message in chat)
        if some and (len(some) == TOGETHER or size + length > CHARACTERS):
            yield some
            some, size = [], 0
        some.append(chat)
        size += length
    yield some


def _render(given: Mapping, chats: Sequence[Sequence[Mapping]]) -> list[str]:
    """What the program makes of the chats, with the template, the variables and the date that are `given`."""
    seconds = SECONDS + int(SECONDS_A_CHAT * len(chats))
    request = {**given, "chats": chats, "path": sys.path, "seconds": seconds, "megabytes": MEGABYTES}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", str(_PROGRAM)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=30 * seconds,
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            check=False,
        )
        said = json.loads(done.stdout) if done.returncode == 0 else {"failed": _why(done, seconds)}
    except subprocess.TimeoutExpired:
        said = {"failed": f"a template that does not end within {30 * seconds} seconds"}
    if "texts" not in said:
        raise ValueError(f"chat template: got {_clean(said['failed'])}; {_remedy(said['failed'])}")
    return list(said["texts"])


def _why(done: subprocess.CompletedProcess[bytes], seconds: int) -> str:
    """What ended the program."""
    if done.returncode < 0:
        return f"a template that takes more than {seconds} processor seconds or {MEGABYTES} megabytes"
    return (done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1]


def _remedy(failed: str) -> str:
    if "No module named 'jinja2'" in failed:
        return 'jinja2 renders templates; install it: pip install "grpo-jax[hf]"'
    if "ystem" in failed and "TemplateError" in failed:
        return "allowed are messages that it takes: set chat.system to None and put its words into chat.question"
    return (
        "allowed is a template that transformers renders, within the limits of grpo_jax.text.render: correct the"
        " template, or the messages and chat.options that it is given"
    )


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
