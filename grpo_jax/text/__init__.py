"""From text to token ids and back: built-in and published tokenizers, templates around user text, chats."""

from grpo_jax.text.chat import Chat
from grpo_jax.text.pretrained import PretrainedTokenizer
from grpo_jax.text.templates import check_template, fill, fill_all
from grpo_jax.text.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Chat",
    "PretrainedTokenizer",
    "Tokenizer",
    "check_template",
    "fill",
    "fill_all",
]
