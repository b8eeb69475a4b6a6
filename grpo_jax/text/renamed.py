"""The changed copy of a tokenizer, in which control tokens have names that no text contains.

A name is two noncharacters of Unicode around the id of the token. Everything else is as in the file, so that a text
whose control tokens were renamed has the ids that the original gives it, and a text of a user has no control token.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.text import files
from grpo_jax.text.files import Files

OPEN, CLOSE, MARK = "\ufdd0", "\ufdd1", "\ufdd2"
NAMED = re.compile(f"{OPEN}(\\d+|-){CLOSE}")
UNKNOWN = "\ufffd"
_TAKEN = re.compile(f"[{OPEN}{CLOSE}{MARK}]")
_BEYOND = f"{OPEN}-{CLOSE}"
_PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def safe(text: str) -> str:
    """`text` without the noncharacters that have a meaning here; Unicode keeps them out of texts that are exchanged."""
    return _TAKEN.sub(UNKNOWN, text)


def sealed(text: str) -> str:
    """A rendered chat without noncharacters of its own, marks aside."""
    return _TAKEN.sub(lambda m: m[0] if m[0] == MARK else UNKNOWN, text)


def hidden(token: int) -> str:
    """The name of a control token that no text contains."""
    return f"{OPEN}{token}{CLOSE}"


@dataclass(frozen=True)
class Source:
    """What decides the changed copy: the files, by their digest, and names that are special besides."""

    digest: str
    wanted: frozenset[str]
    found: Files = field(compare=False)


class Loaded(NamedTuple):
    """The changed copy and what it means."""

    backend: Any  # tokenizers.Tokenizer of the changed copy
    names: Mapping[int, str]  # every id
    control: Mapping[str, int]
    every: re.Pattern[str]  # one added token, of those that begin at one place the longest
    starts: re.Pattern[str]  # the first character of a control token
    beyond: int  # highest id + 1


@lru_cache(maxsize=4)
def load(source: Source) -> Loaded:
    """The changed copy of the tokenizer, checked."""
    content = files.tokens(source.found)
    where = source.found.folder / files.TOKENS
    added = _added(content, source.found, where)
    names = _names(content, added, where)
    control = _control(added, names, source)
    changed = _changed(content, added, control)
    try:
        backend = _library().Tokenizer.from_str(json.dumps(changed))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(
            f"{where}: got {error}; allowed is a file that the library tokenizers reads: fetch it again, or save the"
            " tokenizer with a newer transformers"
        ) from None
    beyond = max(names) + 1
    backend.add_special_tokens([_BEYOND])
    _check(backend, control, added, beyond, where)
    every = _any({entry["content"] for entry in added} | control.keys())
    starts = _any(control, "{}(?={})")
    return Loaded(backend, names, control, every, starts, beyond)


def _library() -> Any:
    try:
        return import_module("tokenizers")
    except ImportError:
        raise ValueError(
            'tokenizers: got no such library, which reads published tokenizers; install it: pip install "grpo-jax[hf]"'
        ) from None


def _any(names: Iterable[str], form: str = "{}(?:{})") -> re.Pattern[str]:
    """Matches one of `names`, the longest of those that begin at one place; none of no names.

    Alternatives stand behind their first character, in the `form` given, so that a search passes over other characters
    at once however many names there are.
    """
    by_first: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (-len(name), name)):
        by_first.setdefault(name[0], []).append(re.escape(name[1:]))
    return re.compile("|".join(form.format(re.escape(c), "|".join(rest)) for c, rest in by_first.items()) or "(?!)")


def _added(content: Mapping, found: Files, where: Path) -> list[dict]:
    """The added tokens, with those that only the configuration has: what transformers adds when it loads."""
    entries = content.get("added_tokens") or []
    more = found.config.get("added_tokens_decoder") or {}
    try:
        known = [dict(entry) for entry in entries]
        names = {entry["content"] for entry in known}
        extra = [{**_PLAIN_TOKEN, **entry, "id": int(token)} for token, entry in more.items()]
        known += sorted((entry for entry in extra if entry["content"] not in names), key=lambda entry: entry["id"])
        sound = all(entry["content"] and isinstance(entry["content"], str) for entry in known)
        sound = sound and all(isinstance(entry["id"], int) and entry["id"] >= 0 for entry in known)
    except (AttributeError, KeyError, TypeError, ValueError):
        sound, known = False, []
    if not sound:
        raise ValueError(f"{where}: added_tokens: got no list of tokens with id and content; fetch the files again")
    return known


def _names(content: Mapping, added: Sequence[Mapping], where: Path) -> dict[int, str]:
    """Every id with its token."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    try:
        if isinstance(vocab, Mapping):
            names = {int(token): str(name) for name, token in vocab.items()}
        else:
            names = {token: str(entry[0]) for token, entry in enumerate(vocab or [])}
    except (KeyError, TypeError, ValueError, IndexError):
        names = {}
    if not names:
        raise ValueError(
            f"{where}: model.vocab: got no tokens; allowed is a model with a vocabulary: fetch the file again"
        )
    return names | {entry["id"]: entry["content"] for entry in added}


def _control(added: Sequence[Mapping], names: Mapping[int, str], source: Source) -> dict[str, int]:
    """Control tokens by name: marked as special, with a role, ending a completion, or written by the chat template."""
    found = source.found
    # Padding may be an ordinary token, which text may then hold: masks come from lengths.
    roles = {files.role(found, role) for role in files.ROLES if role != "pad_token"}
    roles |= source.wanted | files.listed(found)
    stops = {names[token] for token in files.ids(found, "eos_token_id") if token in names}
    literal = "\n".join(found.templates.values())
    control = {entry["content"]: entry["id"] for entry in added if entry.get("special")}
    for entry in added:
        name = entry["content"]
        if name in literal and not name.isspace():
            control.setdefault(name, entry["id"])
    ids = {name: token for token, name in names.items() if name in roles | stops}
    control |= {name: token for name, token in ids.items() if name not in control}
    short = [name for name in control if len(name) < 2]
    if short:
        raise ValueError(
            f"{found.folder}: got the special token {short[0]!r}; allowed are names of two characters or more, which"
            " can be told from text: take another tokenizer"
        )
    return control


def _changed(content: Mapping, added: Sequence[Mapping], control: Mapping[str, int]) -> dict:
    """The file with every control token under its hidden name, and nothing that encoding must not do."""
    model = dict(content["model"])
    new = {name: hidden(token) for name, token in control.items()}
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        model["vocab"] = {new.get(name, name): token for name, token in vocab.items()}
    else:
        model["vocab"] = [[new.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]
    if model.get("merges") and any(name in vocab for name in new):
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, new)]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    if model.get("dropout") is not None:
        model["dropout"] = None  # the same text has the same ids
    there = {entry["content"] for entry in added}
    roles = [{**_PLAIN_TOKEN, "special": True, "id": i, "content": name} for name, i in control.items()]
    entries = [*added, *sorted((e for e in roles if e["content"] not in there), key=lambda entry: entry["id"])]
    renamed = [{**entry, "content": new.get(entry["content"], entry["content"])} for entry in entries]
    # Truncation, padding and what surrounds a text are decided by this library.
    free = {"truncation": None, "padding": None, "post_processor": None}
    return {**content, **free, "model": model, "added_tokens": renamed}


def _makes(pair: object, new: Mapping[str, str]) -> bool:
    """True where a merge reads or makes a control token."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else list(pair) if isinstance(pair, list) else ("", "")
    return left in new or right in new or left + right in new


def _check(backend: Any, control: Mapping[str, int], added: Sequence[Mapping], beyond: int, where: Path) -> None:
    """Raise a ValueError unless every control token is found under its hidden name and every added one has its id."""
    for entry in added:
        got = backend.token_to_id(entry["content"])
        if entry["content"] not in control and got != entry["id"]:
            raise ValueError(
                f"{where}: added token {entry['content']!r}: got the id {got}, stated is {entry['id']}; allowed are ids"
                " without gaps: save the tokenizer with a newer transformers"
            )
    wanted = {hidden(token): token for token in control.values()} | {_BEYOND: beyond}
    found = backend.encode_batch(list(wanted), add_special_tokens=False)
    for (name, token), encoded in zip(wanted.items(), found, strict=True):
        if token not in encoded.ids or backend.token_to_id(name) != token:
            shown = next((text for text, i in control.items() if i == token), "the highest")
            raise ValueError(
                f"{where}: special token {shown!r}: got the ids {encoded.ids[:4]}, stated is {token}; allowed are ids"
                " as stated: fetch the file again, or save the tokenizer with a newer transformers"
            )
