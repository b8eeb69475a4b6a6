"""Where the files of a published checkpoint are, and which tensor is in which of them. Nothing leaves the folder."""

import hashlib
import importlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from grpo_jax.models.safetensors import Tensor, brief, parse_object, read_header

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
MAX_INDEX = 32 * 2**20
"""Bytes of the longest index read."""
WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja")
"""What is fetched of a repository on the Hub: settings, weights, tokenizer; no code and nothing pickled."""
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".npz")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class Placed(NamedTuple):
    """A tensor and the file that it is in."""

    file: Path
    tensor: Tensor


def locate(path: str | os.PathLike, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local one, or that of a repository on the Hub, fetched through huggingface_hub.

    Args:
      path: a folder, or ``owner/name`` where there is no such folder.
      revision: branch, tag or commit on the Hub; None for the default branch, and for a local folder.

    Raises ValueError when it is neither, or when huggingface_hub is not installed or cannot fetch it.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise ValueError(
                f"revision: got {revision!r} for the local folder {path}, allowed is None: a folder has one"
            )
        return Path(path)
    name = os.fspath(path)
    if not _REPOSITORY.fullmatch(name):
        raise ValueError(f"path: got {name!r}, allowed are a folder that exists or owner/name on the Hub: correct it")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ValueError(
            f'{name} is no folder here, and fetching it from the Hub needs huggingface_hub: pip install "grpo-jax[hf]",'
            " or give the path of a folder"
        ) from None
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:
        # Whatever the client raises is a checkpoint that is not there.
        raise ValueError(
            f"{name} is no folder here and could not be fetched from the Hub ({type(error).__name__}: {brief(error)}):"
            " correct the name, log in with its own command line if it is gated, or give the path of a folder"
        ) from error


def tensors(folder: Path) -> dict[str, Placed]:
    """Name -> where it is, of all tensors of a checkpoint, whose headers have been checked.

    Raises ValueError for a folder without safetensors, a file that is damaged, an index that names files outside of the
    folder or tensors that are not in them.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.exists() and single.exists():
        raise ValueError(
            f"{folder}: got both {SINGLE} and {INDEX}, allowed is one of them: remove the one that is older"
        )
    if not index.exists():
        checked_file(folder, SINGLE, missing=lambda: _no_weights(folder))
        return {name: Placed(single, tensor) for name, tensor in read_header(single).items()}
    wanted = _weight_map(checked_file(folder, INDEX), folder)
    found: dict[str, Placed] = {}
    for file in sorted(set(wanted.values())):
        path = checked_file(folder, file)
        for name, tensor in read_header(path).items():
            if name in found:
                raise ValueError(
                    f"{folder}: got tensor {brief(name)} in {found[name].file.name} and {file}, allowed is one"
                )
            found[name] = Placed(path, tensor)
    wrong = [name for name, file in wanted.items() if name not in found or found[name].file.name != file]
    unlisted = found.keys() - wanted.keys()
    if wrong or unlisted:
        raise ValueError(
            f"{index}: got an index that does not describe its files: {_some(wrong, 'not where it says')}"
            f"{_some(unlisted, 'not in it')}: files of two checkpoints are mixed, get them again"
        )
    return found


def checked_file(folder: Path, name: str, missing: Callable[[], ValueError] | None = None) -> Path:
    """A regular file of `folder`. A link may lead into the cache of the Hub that the folder is of, and nowhere else."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        kind = real.stat().st_mode
    except (OSError, RuntimeError):
        if missing is not None and not path.is_symlink():
            raise missing() from None
        raise ValueError(
            f"{path}: got no file of this name, allowed is one that exists: get the checkpoint again"
        ) from None
    home = folder.resolve()
    inside = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(place) for place in inside):
        raise ValueError(
            f"{path}: got a link that leads out of the folder, allowed are files in it: copy the file there"
        )
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path}: got something that is no regular file: get the checkpoint again")
    return path


def fingerprint(path: str | os.PathLike, *, blocks: int = 256, block_bytes: int = 4096) -> str:
    """sha256 (hex) by which a run tells that it began from the weights of this folder and not from others.

    It covers config.json, of every safetensors file the name, the length, the whole header and `blocks` blocks of
    `block_bytes` at even distances, the last bytes among them, and nothing else: reading it takes moments for any size.
    It does not see a change between those blocks, nor one of the tokenizer.
    """
    folder = Path(path)
    digest = hashlib.sha256()
    files = sorted({placed.file for placed in tensors(folder).values()})
    digest.update(checked_file(folder, CONFIG).read_bytes())
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            digest.update(f"\0{file.name}\0{size}\0{length}\0".encode())
            digest.update(opened.read(length))
            for offset in _offsets(8 + length, size, blocks, block_bytes):
                opened.seek(offset)
                digest.update(opened.read(block_bytes))
    return digest.hexdigest()


def _offsets(begin: int, end: int, blocks: int, block_bytes: int) -> list[int]:
    last = max(end - block_bytes, begin)
    return sorted({begin + (last - begin) * i // max(blocks - 1, 1) for i in range(blocks)})


def _weight_map(index: Path, folder: Path) -> dict[str, str]:
    with index.open("rb") as file:
        text = file.read(MAX_INDEX + 1)
    if len(text) > MAX_INDEX:
        raise ValueError(f"{index}: got more than {MAX_INDEX} bytes, allowed are fewer: it is no index")
    wanted = parse_object(text, what=str(index)).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise ValueError(
            f"{index}: got weight_map {brief(wanted)}, allowed is an object of tensor and file: get it again"
        )
    for name, file in wanted.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and not {"/", "\\", "\0"} & set(file)
        if not plain or file.startswith("."):
            raise ValueError(
                f"{index}: got the file {brief(file)} for {brief(name)}, allowed are names of files in {folder} that"
                " end in .safetensors: nothing else is opened"
            )
    return wanted


def _no_weights(folder: Path) -> ValueError:
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in _UNSAFE)
    if unsafe:
        return ValueError(
            f"{folder}: got weights as {', '.join(unsafe[:3])}, allowed are {SINGLE} or {INDEX}: a pickle can run code"
            " and is never opened; convert it with save_pretrained(..., safe_serialization=True) of transformers"
        )
    return ValueError(f"{folder}: got neither {SINGLE} nor {INDEX}, allowed is one of them: is it the right folder?")


def _some(names: Iterable[str], what: str) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return f"{what}: {', '.join(map(brief, listed[:5]))}{more}; "
