"""A published tokenizer: the ids of its ``tokenizer.json``, and text of users that can never become a special token.

The library `tokenizers` does the work, on a changed copy of the file. In the copy every *control token* has a name
that no text contains: two noncharacters of Unicode around its number. A name such as ``<|im_end|>`` inside a question
is then ordinary text, cut into ordinary pieces; text of ours has its names replaced before it is encoded, so that the
whole is still encoded in one piece, exactly as the reference encodes it. Control tokens are those that are marked as
special, those that have a role (beginning, end, padding, stop), and those that the chat template writes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from grpo_jax.models.source import locate
from grpo_jax.text import files, renamed
from grpo_jax.text.files import Files

_TOGETHER = 1024
"""Texts that are encoded at once."""
Parts = Sequence[tuple[str, bool]]
"""Pieces of one text, each with True where special tokens are recognised in it."""


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer in a folder, as `transformers` saves it, or on the Hub; it fulfils `grpo_jax.text.Tokenizer`.

    The roles of tokens come from tokenizer_config.json, then special_tokens_map.json, then generation_config.json.
    Raises ValueError for files that are missing or damaged, for a role that is named nowhere and for a token that is
    not there.
    """

    path: str
    eos_token: str | None = None
    """Name of the token that ends a demonstration; None: the one that the files name."""
    pad_token: str | None = None
    """Name of the token that fills up; None: the one that the files name, or else that of the end."""
    revision: str | None = None
    """Branch, tag or commit where `path` is a name on the Hub."""

    def __post_init__(self) -> None:
        _ = self._roles

    @property
    def digest(self) -> str:
        """SHA-256 over the files: a run does not go on with another tokenizer."""
        return self._files.digest

    @property
    def templates(self) -> Mapping[str, str]:
        """The chat templates by name; that without one is "default"."""
        return self._files.templates

    @property
    def vocab_size(self) -> int:
        """Highest id + 1. Models have this many rows or more."""
        return self._loaded.beyond

    @property
    def eos(self) -> int:
        """The token that ends a demonstration."""
        return self._roles.eos

    @property
    def pad(self) -> int:
        """The token that fills up; masks come from lengths, so it may be that of the end."""
        return self._roles.pad

    @property
    def bos(self) -> int | None:
        """The token that begins a text, where there is one."""
        return self._roles.bos

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token that ends a completion, that of demonstrations first: what `Sampling.stop` should hold."""
        return self._roles.stops

    @property
    def special(self) -> dict[str, int]:
        """Control tokens by name: those that text of users cannot bring in."""
        return dict(self._loaded.control)

    @cached_property
    def variables(self) -> dict[str, str]:
        """Names of the tokens that have a role, as chat templates read them: ``bos_token``, ``eos_token``..."""
        named = {role: files.role(self._files, role) for role in files.ROLES}
        if self.eos_token is not None:
            named["eos_token"] = self.eos_token
        if self.pad_token is not None:
            named["pad_token"] = self.pad_token
        return {role: name for role, name in named.items() if name is not None}

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids of `text`; control tokens are recognised only when `specials` is True."""
        return self.encode_parts([[(text, specials)]])[0].tolist()

    def encode_parts(self, texts: Sequence[Parts]) -> list[np.ndarray]:
        """i32[tokens] of texts, each encoded as one piece though special tokens are recognised in parts of it only."""
        return self._batch(
            "".join(self._named(renamed.safe(t)) if own else renamed.safe(t) for t, own in p) for p in texts
        )

    def marked(self, text: str) -> str:
        """`text` of a user with control tokens broken by a mark, so that it can go through a chat template."""
        return self._loaded.starts.sub(rf"\g<0>{renamed.MARK}", renamed.safe(text))

    def controls(self, text: str) -> list[str]:
        """The control tokens of a rendered chat, in order; those that are `marked` are none."""
        return [name for name in self._loaded.every.findall(text) if name in self._loaded.control]

    def encode_marked(self, texts: Sequence[str]) -> list[np.ndarray]:
        """i32[tokens] of rendered chats, in which text of users is `marked`."""
        return self._batch(self._named(renamed.sealed(text)).replace(renamed.MARK, "") for text in texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, control tokens by their names; what no token stands for is U+FFFD, never an error."""
        loaded = self._loaded
        known = [int(token) if int(token) in loaded.names else loaded.beyond for token in ids]
        text = loaded.backend.decode(known, skip_special_tokens=False)
        return renamed.NAMED.sub(lambda m: renamed.UNKNOWN if m[1] == "-" else loaded.names[int(m[1])], text)

    def _named(self, text: str) -> str:
        """`text` with control tokens under their hidden names."""
        control = self._loaded.control
        return self._loaded.every.sub(lambda m: renamed.hidden(control[m[0]]) if m[0] in control else m[0], text)

    def _batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """i32[tokens] of each text; some at a time, because the library's records are large."""
        waiting, found = iter(texts), []
        while some := [_sound(text) for text in islice(waiting, _TOGETHER)]:
            encoded = self._loaded.backend.encode_batch(some, add_special_tokens=False)
            found += [np.array(encoding.ids, np.int32) for encoding in encoded]
        return found

    @cached_property
    def _files(self) -> Files:
        return files.read(locate(self.path, revision=self.revision))

    @cached_property
    def _loaded(self) -> renamed.Loaded:
        wanted = frozenset() if self.eos_token is None else frozenset([self.eos_token])
        return renamed.load(renamed.Source(self._files.digest, wanted, self._files))

    @cached_property
    def _roles(self) -> "_Roles":
        found = self._files
        listed = files.ids(found, "eos_token_id")
        end = self.eos_token or files.role(found, "eos_token")
        if end is None and not listed:
            raise ValueError(
                f"{found.folder}: no file names the token that ends a text; allowed is a name in {files.CONFIG}: give"
                ' it, PretrainedTokenizer(path, eos_token="...")'
            )
        eos = listed[0] if end is None else self._id("eos_token", end)
        filling = self.pad_token or files.role(found, "pad_token")
        beginning = files.role(found, "bos_token")
        pads = [*files.ids(found, "pad_token_id"), eos]
        roles = _Roles(
            eos=eos,
            pad=pads[0] if filling is None else self._id("pad_token", filling),
            bos=None if beginning is None else self._id("bos_token", beginning),
            stops=tuple(dict.fromkeys((eos, *listed))),
        )
        wrong = [token for token in (*roles.stops, roles.pad) if not 0 <= token < self.vocab_size]
        if wrong:
            raise ValueError(
                f"{found.folder}: eos_token_id or pad_token_id: got {wrong[0]}; allowed are ids of tokens, 0 to"
                f" {self.vocab_size - 1}: correct {files.GENERATION}"
            )
        return roles

    def _id(self, role: str, name: str) -> int:
        found = self._loaded.control.get(name, self._loaded.backend.token_to_id(name))
        if found is None:
            raise ValueError(
                f"{self._files.folder}: {role}: got {name!r}, which is no token of {files.TOKENS}; allowed are its"
                f" tokens, such as {', '.join(list(self._loaded.control)[:8])}: correct {files.CONFIG}, or give {role}"
            )
        return found


class _Roles(NamedTuple):
    eos: int
    pad: int
    bos: int | None
    stops: tuple[int, ...]


def _sound(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {text[error.start]!r} at position {error.start} is a lone surrogate, which UTF-8 cannot"
            " hold; allowed is any other Unicode text; remove it"
        ) from None
    return text
