"""From text to token ids and back: small built-in tokenizers and the templates that put user text between tags."""

from grpo_jax.text.templates import check_template, fill
from grpo_jax.text.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "CharacterTokenizer", "Tokenizer", "check_template", "fill"]
