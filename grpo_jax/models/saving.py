"""Parameters into a folder that other tools read: config.json, safetensors, the files of the tokenizer."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from grpo_jax.models import source
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import without_critic
from grpo_jax.models.names import Part, parts
from grpo_jax.models.published import to_fields
from grpo_jax.models.safetensors import cast, parse_object, write
from grpo_jax.models.table import abstract
from grpo_jax.types import Array, Params

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What is copied from `tokenizer_from`: data, never code."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DTYPES = ("float32", "float16", "bfloat16")


def save(
    path: str | os.PathLike,
    params: Params,
    config: ModelConfig,
    *,
    tokenizer_from: str | os.PathLike | None = None,
    dtype: str | None = None,
    shard_bytes: float = 5e9,
) -> None:
    """Write a folder that `load` reads back bit for bit and that transformers and what builds on it load.

    The folder appears when it is complete: it is written beside its place under another name, and after a failure
    nothing of it stays. A critic is left out. Every process makes the same call; the first one writes.

    Args:
      path: the folder; must not exist or be empty.
      params: of either layout of the layers.
      config: what they are parameters of. Its `family` is the architecture written; None for the first that fits.
      tokenizer_from: a folder, whose files of a tokenizer (`TOKENIZER_FILES`) are copied and whose config.json gives
        the numbers of the tokens that begin, end and pad a text. None: neither is written.
      dtype: of the weights: float32, float16 or bfloat16; None for ``config.param_dtype``.
      shard_bytes: above so many, weights are split over several files with an index.

    Raises ValueError for a model that no family expresses (with what does not fit), parameters that are not those of
    `config`, a folder that has something in it, a dtype that cannot hold the numbers; OSError when writing fails.
    """
    if config.lora is not None:
        raise ValueError(
            "config.lora: got adapters, allowed is None: add them to their matrices with models.merged first"
        )
    path = Path(path).absolute()
    target = np.dtype(jnp.dtype(_checked(dtype or config.param_dtype)))
    policy = dataclasses.replace(config, critic=None, critic_detached=False, param_dtype=target.name)
    content = to_fields(policy)
    leaves = _leaves(without_critic(params), policy)
    wanted = parts(policy, content["architectures"][0])
    copied = tokenizer_files(tokenizer_from)
    if tokenizer_from is not None and not copied:
        raise ValueError(
            f"tokenizer_from: got {tokenizer_from}, which has none of {', '.join(TOKENIZER_FILES)}: give the folder of"
            " the tokenizer, or None"
        )
    content |= special_tokens(tokenizer_from)
    writer = _Writer(policy, wanted, leaves, target)
    files = writer.plan(shard_bytes)
    if jax.process_index() != 0:
        writer.attend(files)
        return
    check_new(path)
    with appearing(path) as folder:
        writer.write(folder, files)
        for file in copied:
            shutil.copyfile(file, folder / file.name)
        write_json(folder / source.CONFIG, content)


def _checked(dtype: str) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, allowed are {', '.join(_DTYPES)}: other tools read these")
    return dtype


def _leaves(params: Params, config: ModelConfig) -> dict[str, Array]:
    """Path -> array, in the layout that `params` have; refuses all but the parameters of `config`."""
    config = dataclasses.replace(config, stacked=not all(name.isdigit() for name in params["layers"]))
    wanted = {_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(config))}
    found = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} is left over" for name in found.keys() - wanted.keys()]
    wrong += [
        f"{name} has the shape {found[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"params: got what are not the parameters of config: {'; '.join(sorted(wrong)[:20])}")
    return found


def _path(path: tuple) -> str:
    return "/".join(str(part.key) for part in path)


class _Writer:
    """The tensors of a folder, made one by one from the parameters."""

    def __init__(
        self,
        config: ModelConfig,
        wanted: Mapping[str, list[Part]],
        leaves: Mapping[str, Array],
        dtype: np.dtype,
    ):
        self._leaves, self._dtype = leaves, dtype
        self._of = {part.name: (name, part) for name, made_of in wanted.items() for part in made_of}

    def plan(self, shard_bytes: float) -> dict[str, list[str]]:
        """File -> its tensors."""
        shards: list[list[str]] = [[]]
        size = 0
        for name, (_, part) in self._of.items():
            count = math.prod(part.shape) * self._dtype.itemsize
            if shards[-1] and size + count > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += count
        if len(shards) == 1:
            return {source.SINGLE: shards[0]}
        return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}

    def attend(self, files: Mapping[str, list[str]]) -> None:
        """Take part in gathering what the first process writes."""
        for names in files.values():
            for name in sorted(names):
                for _ in self._value(name):
                    pass

    def write(self, folder: Path, files: Mapping[str, list[str]]) -> None:
        for file, names in files.items():
            write(folder / file, {name: (self._dtype, self._of[name][1].shape) for name in names}, self._value)
        if len(files) > 1:
            total = sum(math.prod(part.shape) for _, part in self._of.values()) * self._dtype.itemsize
            mapping = {name: file for file, names in files.items() for name in names}
            write_json(
                folder / source.INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(mapping.items()))}
            )

    def _value(self, name: str) -> Iterable[np.ndarray]:
        parameter, part = self._of[name]
        array = self._leaf(parameter)
        array = array if part.expert is None else array[part.expert]
        host = _host(array).transpose(part.order).reshape(part.shape)
        yield cast(host, self._dtype, what=parameter)

    def _leaf(self, name: str) -> Array:
        if name in self._leaves:
            return self._leaves[name]
        _, layer, inner = name.split("/")
        return self._leaves[f"layers/{inner}"][int(layer)]


def _host(array: Array) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def tokenizer_files(folder: str | os.PathLike | None) -> list[Path]:
    """What of `TOKENIZER_FILES` a folder has."""
    if folder is None:
        return []
    folder = source.locate(folder)
    return [source.checked_file(folder, name) for name in TOKENIZER_FILES if (folder / name).exists()]


def special_tokens(folder: str | os.PathLike | None) -> dict[str, Any]:
    """The numbers of special tokens as the config.json beside a tokenizer gives them; null where it does not."""
    found: dict[str, Any] = dict.fromkeys(_IDS)
    if folder is None or not (path := source.locate(folder) / source.CONFIG).exists():
        return found
    content = parse_object(source.checked_file(path.parent, path.name).read_bytes(), what=str(path))
    return {name: content.get(name) for name in _IDS}


def check_new(path: Path) -> None:
    """Raise ValueError where there is something that a new folder would replace."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"path: got {path}, which exists, allowed is a new or empty folder: choose another name")


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder under another name, which becomes `path` at the end, and which is gone after a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)
        _flush(folder)
        os.replace(folder, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a new JSON file and wait until it is on the disk."""
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
