"""Small checkpoints of random weights in the published format, tokenizer and chat template included.

One added token of the tokenizer is a whole answer, so that a policy which has learnt nothing gives it now and then, and
one that learns to give it always is right.
"""

import dataclasses
import json
from pathlib import Path

import jax
from tokenizers import AddedToken, Tokenizer

from grpo_jax import models
from grpo_jax.models import ModelConfig
from tests.laws.families import FAMILIES
from tests.text import published

ANSWER = "4"
STYLES = {
    "Qwen2ForCausalLM": "qwen2.5",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama3",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mistral",
}
"""Architecture -> in which style its tokenizer and template are."""


def tokenizer(folder: Path, style: str) -> int:
    """Write the files of a tokenizer; the number of its tokens."""
    published.write(folder, style)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_tokens([AddedToken(f"<answer>{ANSWER}</answer>", normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    return max(made.get_vocab(with_added_tokens=True).values()) + 1


def checkpoint(folder: Path, family: str, *, seed: int = 0) -> ModelConfig:
    """Write a checkpoint of the small model that `FAMILIES` calls `family`, with a row for every token and one more."""
    config = FAMILIES[family]
    made = folder.with_name(f"{folder.name}-tokenizer")
    size = tokenizer(made, STYLES[str(config.family)])
    # Tables large enough that a state of norm one, whatever its direction, can make one token nearly sure.
    config = dataclasses.replace(config, vocab=size + 1, embed_std=0.5, head_std=0.5)
    if config.logit_cap:  # as in the published ones: below it no token becomes nearly sure
        config = dataclasses.replace(config, logit_cap=30.0)
    models.save(folder, models.init(jax.random.key(seed), config), config, tokenizer_from=made)
    return config


def questions(path: Path, count: int = 40) -> Path:
    """A file of so many different questions with the one answer."""
    lines = [json.dumps({"prompt": f"What is {4 + n} - {n}?", "answer": ANSWER}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
