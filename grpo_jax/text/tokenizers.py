"""Two tokenizers that need no file: a task's characters, and bytes. Both take special tokens, one id each.

Ids: the characters (or the 256 bytes) first, then the special tokens in the order given. ``<eos>`` must be among the
special tokens; ``<pad>`` and ``<bos>`` may be. Without ``<pad>`` the padding id is the id of ``<eos>``: masks come from
lengths, never from token values, so the two may be equal.

Special tokens are recognised in text only on request (``encode(text, specials=True)``, the longest name first): a
template of ours says so, text of a user never does, so that a question cannot smuggle ``<eos>`` into a prompt.
Decoding writes a special token by its name.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

BYTES = 256
UNKNOWN = "\ufffd"
"""What an id decodes to that no token has."""
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL = ("<pad>", "<eos>", *TAGS)


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad(self) -> int: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def eos(self) -> int: ...

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token that ends a completion, `eos` first."""
        ...

    @property
    def special(self) -> dict[str, int]: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the files that the settings only name, or empty."""
        ...

    def encode(self, text: str, specials: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class CharacterTokenizer:
    """One id per character of `alphabet`, then one per name in `specials`.

    A character outside the alphabet is a ValueError when encoding; an id past the last token decodes to U+FFFD.
    """

    alphabet: str
    specials: tuple[str, ...] = SPECIAL

    def __post_init__(self) -> None:
        repeated = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
        if not self.alphabet or repeated:
            raise ValueError(
                f"alphabet: got {self.alphabet!r} with repeated characters {repeated}; allowed is a non-empty string of"
                " distinct characters; remove the repetitions"
            )
        _check_specials(self.specials, self.alphabet)

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet) + len(self.specials)

    @property
    def special(self) -> dict[str, int]:
        return {name: len(self.alphabet) + index for index, name in enumerate(self.specials)}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.alphabet)}

    @property
    def pad(self) -> int:
        return self.special.get("<pad>", self.eos)

    @property
    def bos(self) -> int | None:
        return self.special.get("<bos>")

    @property
    def eos(self) -> int:
        return self.special["<eos>"]

    @property
    def stops(self) -> tuple[int, ...]:
        return (self.eos,)

    @property
    def digest(self) -> str:
        return ""

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids of `text`; special tokens are recognised only when `specials` is True."""
        ids: list[int] = []
        special = self.special
        position = 0
        for piece in _pieces(text, self.specials if specials else ()):
            if specials and piece in special:
                ids.append(special[piece])
            else:
                ids.extend(self._character(c, position + offset) for offset, c in enumerate(piece))
            position += len(piece)
        return ids

    def _character(self, character: str, position: int) -> int:
        index = self._index.get(character)
        if index is None:
            raise ValueError(
                f"text: character {character!r} at position {position} is not in the alphabet {self.alphabet!r}; remove"
                " it, add it to the alphabet, or encode with specials=True if it belongs to a special token"
            )
        return index

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; a special token is written by its name."""
        names = (*self.alphabet, *self.specials, UNKNOWN)
        return "".join(names[_checked(i, self.vocab_size)] for i in ids)


@dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8, then one id per name in `specials`. Any text makes the round trip exactly.

    Bytes that are no valid UTF-8 (a policy may sample them) decode to the replacement character U+FFFD, and so does an
    id past the last token.
    """

    specials: tuple[str, ...] = SPECIAL

    def __post_init__(self) -> None:
        _check_specials(self.specials, "")

    @property
    def vocab_size(self) -> int:
        return BYTES + len(self.specials)

    @property
    def special(self) -> dict[str, int]:
        return {name: BYTES + index for index, name in enumerate(self.specials)}

    @property
    def pad(self) -> int:
        return self.special.get("<pad>", self.eos)

    @property
    def bos(self) -> int | None:
        return self.special.get("<bos>")

    @property
    def eos(self) -> int:
        return self.special["<eos>"]

    @property
    def stops(self) -> tuple[int, ...]:
        return (self.eos,)

    @property
    def digest(self) -> str:
        return ""

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids of `text`; special tokens are recognised only when `specials` is True."""
        if not specials:
            return list(_utf8(text))
        ids: list[int] = []
        special = self.special
        for piece in _pieces(text, self.specials):
            if piece in special:
                ids.append(special[piece])
            else:
                ids.extend(_utf8(piece))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; a special token is written by its name and ends a run of bytes."""
        parts: list[str] = []
        run = bytearray()
        for i in ids:
            checked = _checked(i, self.vocab_size)
            if checked < BYTES:
                run.append(checked)
                continue
            parts.append(run.decode("utf-8", errors="replace"))
            parts.append((*self.specials, UNKNOWN)[checked - BYTES])
            run.clear()
        parts.append(run.decode("utf-8", errors="replace"))
        return "".join(parts)


def _check_specials(specials: Sequence[str], alphabet: str) -> None:
    wrong = [name for name in specials if not name or name in alphabet or list(specials).count(name) > 1]
    if wrong or "<eos>" not in specials:
        raise ValueError(
            f"specials: got {tuple(specials)!r}; allowed are distinct non-empty names, none of them a character of the"
            f" alphabet, with '<eos>' among them; change {wrong or 'the list so that it has <eos>'}"
        )


@lru_cache(maxsize=64)
def _pattern(specials: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(specials, key=len, reverse=True)
    return re.compile("(" + "|".join(re.escape(name) for name in longest_first) + ")")


def _pieces(text: str, specials: tuple[str, ...]) -> list[str]:
    """`text` cut at special names, which are pieces of their own; empty pieces left out."""
    return [piece for piece in _pattern(specials).split(text) if piece] if specials else [text]


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {text[error.start]!r} at position {error.start} is a lone surrogate, which UTF-8 cannot"
            " hold; allowed is any other Unicode text; remove it"
        ) from None


def _checked(token: int, vocab_size: int) -> int:
    """The id, or `vocab_size` for one that a model with more rows than tokens may draw."""
    index = int(token)
    if index < 0:
        raise ValueError(
            f"ids: got {index}; allowed are 0 to {vocab_size - 1}; decode only the tokens inside the length of a row,"
            " with the tokenizer that made them"
        )
    return min(index, vocab_size)
