"""Ids of chats, of texts and back, against transformers."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import grpo_jax.text.chat
from grpo_jax.text import Chat, PretrainedTokenizer
from grpo_jax.text.render import render
from tests.text import published

QUESTIONS = (
    "What is 12 + 34?",
    "  leading and trailing  \n",
    "\n\nlines\n\n\nbetween\n",
    "été 漢字 🙂 \t x",
    "a < b and b > c <| |> [1] {{ x }} {% y %} \\boxed{}",
    "x",
)
SYSTEM = "You are a tutor.\n"
PREFIX = "<think>\n"


def case(folder: Path, question: str, system: str | None, prefix: str, options: dict) -> dict:
    messages = [{"role": "system", "content": system}] if system is not None else []
    ids = np.random.default_rng(len(question)).integers(0, 350, (3, 12)).tolist()
    return {
        "folder": str(folder),
        "messages": [*messages, {"role": "user", "content": question}],
        "prefix": prefix,
        "options": options,
        "texts": [question],
        "ids": ids,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("published")
    return {style: published.write(where / style, style, jinja=style != "smollm") for style in published.STYLES}


@pytest.fixture(scope="module")
def compared(folders: dict[str, Path]) -> list[tuple[dict, dict]]:
    """Every case with what the reference says."""
    settings = itertools.product(folders.values(), ((None, ""), (SYSTEM, ""), (SYSTEM, PREFIX)), QUESTIONS)
    cases = [case(folder, question, system, prefix, {}) for folder, (system, prefix), question in settings]
    cases += [
        case(folders["qwen3"], question, None, "", {"enable_thinking": thinking})
        for thinking in (False, True)
        for question in QUESTIONS
    ]
    cases += [case(folders["llama3"], QUESTIONS[0], None, "", {"date_string": "1 Jan 2025"})]
    script = Path(__file__).with_name("reference.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(cases).encode(), capture_output=True, check=True
    )
    return list(zip(cases, json.loads(done.stdout), strict=True))


def chat_of(case: dict) -> Chat:
    system = next((m["content"] for m in case["messages"] if m["role"] == "system"), None)
    return Chat(system=system, prefix=case["prefix"], options=case["options"])


def inside(given: Mapping, chats: Sequence[Sequence[Mapping]]) -> list[str]:
    """Renders in this process what else is rendered in one of its own, which tests/text/test_chat.py tries."""
    try:
        return render(given["template"], chats, given["variables"], given["date"])
    except Exception as error:
        raise ValueError(str(error)) from None


def test_chats_have_the_text_and_the_ids_of_the_reference(
    compared: list[tuple[dict, dict]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grpo_jax.text.chat, "_render", inside)
    refused = 0
    for key, group in itertools.groupby(
        compared, key=lambda pair: (pair[0]["folder"], chat_of(pair[0]), "refused" in pair[1])
    ):
        folder, chat, wrong = key
        rows = list(group)
        tokenizer = PretrainedTokenizer(folder)
        questions = [row["messages"][-1]["content"] for row, _ in rows]
        if wrong:
            refused += len(rows)
            with pytest.raises(ValueError, match="System role not supported"):
                chat.encode(questions, tokenizer)
            continue
        for (row, wanted), ids in zip(rows, chat.encode(questions, tokenizer), strict=True):
            assert ids.tolist() == wanted["chat"], (row, tokenizer.decode(ids))
            assert ids.dtype == np.int32
        assert chat.text(questions[0], tokenizer) == rows[0][1]["rendered"]
    assert refused == 2 * len(QUESTIONS)  # Gemma's has no system role, with and without a prefix


def test_texts_have_the_ids_of_the_reference_and_ids_its_text(compared: list[tuple[dict, dict]]):
    for row, wanted in compared:
        if "refused" in wanted:
            continue
        tokenizer = PretrainedTokenizer(row["folder"])
        assert [tokenizer.encode(text) for text in row["texts"]] == wanted["texts"]
        assert [tokenizer.decode(ids) for ids in row["ids"]] == wanted["decoded"]
        eos, pad, bos = wanted["stops"]
        assert (tokenizer.eos, tokenizer.bos) == (eos, bos) and tokenizer.pad == (eos if pad is None else pad)
