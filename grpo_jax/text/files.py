"""The files of a published tokenizer: read with limits, joined into one record, none of them trusted.

``tokenizer.json`` holds the tokens and how text is cut; ``tokenizer_config.json`` and ``special_tokens_map.json`` name
the beginning, the end and the padding; ``generation_config.json`` (else ``config.json``) lists the tokens that end a
completion; the chat templates are ``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja``, or stand in
``tokenizer_config.json`` as one text or as a list of named ones. Files of templates go before those of the
configuration, as in transformers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo_jax.models.source import checked_file

TOKENS = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
GENERATION = "generation_config.json"
MODEL = "config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = ("additional_chat_templates", "chat_templates")
READ = (TOKENS, CONFIG, SPECIAL, GENERATION, MODEL, TEMPLATE)
DEFAULT = "default"
LARGEST = 1 << 28  # bytes of tokenizer.json; that of 262,144 tokens has 33 million
LARGEST_OTHER = 1 << 22
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Files:
    """What the files of a folder say, tokenizer.json aside, which is large and read when it is used."""

    folder: Path
    config: Mapping
    special: Mapping
    generation: Mapping
    templates: Mapping[str, str]  # by name; that without one is "default"
    digest: str  # SHA-256 over the files that decide ids, stop tokens and templates


def read(folder: Path) -> Files:
    """All that the files in `folder` say; only tokenizer.json has to be there.

    Raises ValueError with the name of the file for one that is missing, too large or of the wrong form.
    """
    if not _there(folder / TOKENS):
        there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no such folder"
        raise ValueError(
            f"tokenizer: got {str(folder)!r} without {TOKENS} ({there}); allowed is a folder with {TOKENS}, as a fast"
            " tokenizer of transformers writes it: save the tokenizer there with its save_pretrained"
        )
    digest = hashlib.sha256()
    config, special = _object(folder / CONFIG, digest), _object(folder / SPECIAL, digest)
    generation = _object(folder / GENERATION, digest)
    if not _there(folder / GENERATION):
        model = _object(folder / MODEL)
        generation = {name: model[name] for name in ("eos_token_id", "pad_token_id") if name in model}
        digest.update(json.dumps(generation, sort_keys=True).encode())
    digest.update(hashlib.sha256(_bytes(folder / TOKENS, LARGEST)).digest())
    return Files(folder, config, special, generation, _templates(folder, config, digest), digest.hexdigest())


def tokens(found: Files) -> dict:
    """The content of tokenizer.json."""
    return _object(found.folder / TOKENS, largest=LARGEST)


def _object(path: Path, digest: "hashlib._Hash | None" = None, largest: int = LARGEST_OTHER) -> dict:
    """The JSON object that the file holds; {} where there is none. Its bytes go into the digest."""
    if not _there(path):
        return {}
    data = _bytes(path, largest)
    if digest is not None:
        digest.update(hashlib.sha256(data).digest())
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got no JSON ({error}); allowed is a JSON object: fetch the file again") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: got a {type(found).__name__}; allowed is a JSON object: fetch the file again, or take a tokenizer"
            " that transformers wrote"
        )
    return found


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _bytes(path: Path, largest: int) -> bytes:
    """The content of a file, which lies in its folder or in the cache of the Hub that the folder is of."""
    home = path.parent.parent if path.parent.name in TEMPLATES else path.parent
    path = checked_file(home, str(path.relative_to(home)))
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"{path}: got {size:,} bytes; allowed are {largest:,}: this is no file of a tokenizer")
    return path.read_bytes()


def _templates(folder: Path, config: Mapping, digest: "hashlib._Hash") -> dict[str, str]:
    """The chat templates by name: those in files, or else those of the configuration."""
    paths = {DEFAULT: folder / TEMPLATE} if _there(folder / TEMPLATE) else {}
    for name in TEMPLATES:
        paths |= {path.stem: path for path in sorted((folder / name).glob("*.jinja"))}
    if not paths:
        return _stated(folder / CONFIG, config.get("chat_template"))
    found = {}
    for name, path in paths.items():
        data = _bytes(path, LARGEST_OTHER)
        digest.update(hashlib.sha256(data).digest())
        try:
            found[name] = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: got {error}; allowed is UTF-8: fetch the file again") from None
    return found


def _stated(path: Path, stated: object) -> dict[str, str]:
    """The templates that the field ``chat_template`` of the configuration states, in one of its two forms."""
    if stated is None:
        return {}
    named = [{"name": DEFAULT, "template": stated}] if isinstance(stated, str) else stated
    if isinstance(named, list) and all(isinstance(entry, Mapping) for entry in named):
        pairs = [(entry.get("name"), entry.get("template")) for entry in named]
        if all(isinstance(name, str) and isinstance(template, str) for name, template in pairs):
            return {str(name): str(template) for name, template in pairs}
    raise ValueError(
        f'{path}: chat_template: got {stated!r:.80}; allowed is a text or a list of {{"name": ..., "template": ...}}:'
        " correct the file"
    )


def role(found: Files, name: str) -> str | None:
    """The name of the token with this role, where a file gives one."""
    for stated in (found.config.get(name), found.special.get(name)):
        token = stated.get("content") if isinstance(stated, Mapping) else stated
        if isinstance(token, str) and token:
            return token
    return None


def listed(found: Files) -> set[str]:
    """Names that the configuration lists as special besides the roles."""
    names = set()
    for source in (found.config, found.special):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = source.get(key) or []
            entries = listed.values() if isinstance(listed, Mapping) else listed if isinstance(listed, list) else []
            contents = [entry.get("content") if isinstance(entry, Mapping) else entry for entry in entries]
            names |= {name for name in contents if isinstance(name, str) and name}
    return names


def ids(found: Files, *keys: str) -> list[int]:
    """Ids that generation_config.json gives under `keys`, one or several each."""
    found_ids: list[int] = []
    for key in keys:
        stated = found.generation.get(key)
        listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
            raise ValueError(
                f"{found.folder}: {key}: got {stated!r:.80}; allowed are whole numbers: correct {GENERATION}"
            )
        found_ids += listed
    return found_ids
