"""The reference implementation in a process of its own: what transformers makes of chats and texts.

Standard input is a JSON list of cases ``{"folder", "messages", "prefix", "options", "texts", "ids"}``, standard output
a list of ``{"chat": ids, "rendered", "texts": [ids], "decoded", "stops"}``, or ``{"refused"}`` where the template
refuses. The day is 2024-07-26.
"""

import datetime
import json
import sys

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class Day(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Day":
        return cls(2024, 7, 26, tzinfo=tz)


def answer(case: dict) -> dict:
    """What transformers says to one case."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(case["folder"])
    try:
        chat = {"conversation": case["messages"], "add_generation_prompt": True, **case["options"]}
        rendered = str(tokenizer.apply_chat_template(tokenize=False, **chat))
        ids = tokenizer.apply_chat_template(tokenize=True, return_dict=False, **chat)
    except Exception as error:  # jinja's, whatever it is
        return {"refused": str(error)}
    if case["prefix"]:
        ids = tokenizer(rendered + case["prefix"], add_special_tokens=False)["input_ids"]
    return {
        "chat": ids,
        "rendered": rendered + case["prefix"],
        "texts": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in case["texts"]],
        "decoded": [tokenizer.decode(row, skip_special_tokens=False) for row in case["ids"]],
        "stops": [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id],
    }


def main() -> None:
    """Answer the cases on standard input."""
    chat_template_utils.__dict__["datetime"] = Day
    json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
