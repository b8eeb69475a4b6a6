"""Published weights into parameters: all is checked before it is read, and a process reads what its devices hold."""

import concurrent.futures
import dataclasses
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from grpo_jax.models import source
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import CRITIC, from_policy
from grpo_jax.models.names import Part, parts
from grpo_jax.models.published import read_config
from grpo_jax.models.safetensors import DTYPES, Index, brief, empty, read_open
from grpo_jax.models.source import Placed
from grpo_jax.models.stored import is_stored, restore
from grpo_jax.models.table import abstract, axes, stack
from grpo_jax.sharding import sharding_tree
from grpo_jax.types import Array, Params

READABLE = ("F32", "F16", "BF16")
"""Dtypes of tensors that are read as weights. Integers and 8-bit floats are quantised, with scales of their own."""


def load(
    path: str | os.PathLike, *, revision: str | None = None, mesh: Mesh | None = None, **changes: Any
) -> tuple[Params, ModelConfig]:
    """The parameters and the config of a published checkpoint.

    Args:
      path: a folder with config.json and safetensors, or ``owner/name`` on the Hub.
      revision: branch, tag or commit there.
      mesh: the parameters are laid out on it as `models.axes` and the rules of training say, and every process reads
        the slices of its own devices only.
      **changes: as in `read_config`: `param_dtype`, `compute_dtype`, `stacked`, `remat`, ... Without `param_dtype`,
        parameters have the dtype that config.json names.

    A critic that `changes` ask for is not in the file: its head is zero, its tower a copy of the policy's decoder.

    Raises ValueError for whatever is wrong with the folder, before anything is read: tensors that are missing, left
    over or of another shape or dtype are listed all at once.
    """
    folder = source.locate(path, revision=revision)
    config = read_config(source.checked_file(folder, source.CONFIG), **changes)
    policy = dataclasses.replace(config, critic=None, critic_detached=False)
    if is_stored(folder):
        params = restore(folder, policy, mesh)
        params = stack(params) if config.stacked else params
    else:
        found = source.tensors(folder)
        wanted = parts(policy, str(config.family))
        _check(folder, policy, wanted, found)
        params = _Reader(policy, wanted, found, mesh).tree()
    if config.critic is not None:
        fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract(config)[CRITIC])
        params = from_policy({**params, CRITIC: fresh})
    return params, config


def _check(folder: Path, config: ModelConfig, wanted: Mapping[str, list[Part]], found: Mapping[str, Placed]) -> None:
    needed = {part.name: part for made_of in wanted.values() for part in made_of}
    faults = []
    for name, part in needed.items():
        if name not in found:
            faults.append(f"{name} is missing")
            continue
        tensor = found[name].tensor
        if tensor.shape != part.shape:
            faults.append(f"{name} has the shape {list(tensor.shape)}, not {list(part.shape)}")
        if tensor.dtype not in [DTYPES[code] for code in READABLE]:
            faults.append(f"{name} is {tensor.dtype}, not one of {', '.join(READABLE)}")
    for name in found.keys() - needed.keys():
        if not _is_harmless(name, config, found):
            faults.append(f"{brief(name)} {list(found[name].tensor.shape)} is left over")
    if faults:
        listed = sorted(faults)[:40]
        more = f"; and {len(faults) - 40} more" if len(faults) > 40 else ""
        raise ValueError(
            f"{folder}: got tensors that are not those of {config.family} as config.json describes it: "
            f"{'; '.join(listed)}{more}. Allowed are just its tensors: is this config.json the one of these weights?"
        )


def _is_harmless(name: str, config: ModelConfig, found: Mapping[str, Placed]) -> bool:
    """Whether a tensor that no parameter is made of says nothing: tables that follow from config.json, or a copy."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    embed = found.get("model.embed_tokens.weight")
    if name != "lm_head.weight" or not config.tied or embed is None:
        return False
    head = found[name]
    return head.tensor[:2] == embed.tensor[:2] and _equal(head, embed)


def _equal(one: Placed, other: Placed, *, step: int = 2**24) -> bool:
    size = one.tensor.end - one.tensor.begin
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.tensor.begin)
        second.seek(other.tensor.begin)
        return all(
            first.read(min(step, size - done)) == second.read(min(step, size - done)) for done in range(0, size, step)
        )


class _Reader:
    """Reads parameters; several at a time, in threads."""

    def __init__(
        self, config: ModelConfig, wanted: Mapping[str, list[Part]], found: Mapping[str, Placed], mesh: Mesh | None
    ):
        self._config, self._wanted, self._found = config, wanted, found
        self._dtype = np.dtype(jnp.dtype(config.param_dtype))
        self._shapes = abstract(config)
        self._mesh = mesh
        self._files: dict[Path, int] = {}
        self._large = threading.Lock()
        self._own = threading.local()

    def tree(self) -> Params:
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._shapes)
        names = ["/".join(str(part.key) for part in path) for path, _ in leaves]
        layouts = [None] * len(names)
        if self._mesh is not None:
            layouts = jax.tree.leaves(sharding_tree(axes(self._config), self._shapes, self._mesh))
        order = sorted(range(len(names)), key=lambda i: -math.prod(leaves[i][1].shape))
        done: list[Any] = [None] * len(names)
        try:
            for file in {placed.file for placed in self._found.values()}:
                self._files[file] = os.open(file, os.O_RDONLY)
            with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                waiting = {i: pool.submit(self._array, names[i], leaves[i][1].shape, layouts[i]) for i in order}
                for i, result in waiting.items():
                    done[i] = result.result()
        finally:
            for file in self._files.values():
                os.close(file)
        return jax.tree.unflatten(structure, done)

    def _array(self, name: str, shape: tuple[int, ...], layout: Sharding | None) -> Array:
        if layout is not None:
            return jax.make_array_from_callback(shape, layout, lambda index: self._read(name, shape, index or ()))
        return jax.device_put(self._read(name, shape, tuple(slice(0, size) for size in shape)))

    def _read(self, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
        """What `index` selects of a parameter, as a host array or a view of one."""
        bounds = [cut.indices(size) for cut, size in zip(index, shape, strict=True)]
        stacked = self._config.stacked and name.startswith("layers/")
        layers = [f"layers/{i}/{name.removeprefix('layers/')}" for i in range(*bounds[0])] if stacked else [name]
        inner = bounds[1:] if stacked else bounds
        made_of = self._wanted[layers[0]]
        single = made_of[0].expert is None
        experts = [None] if single else list(range(*inner[0]))
        inner = inner if single else inner[1:]
        first = made_of[0]
        cuts = tuple(slice(*inner[axis][:2]) for axis in first.order)
        counts = tuple(cut.stop - cut.start for cut in cuts)
        leading = (len(layers),) * stacked + (() if single else (len(experts),))
        out = empty((math.prod(leading), *counts), self._dtype)
        place = 0
        for layer in layers:
            for expert in experts:
                self._fill(self._wanted[layer][expert or 0], cuts, out[place])
                place += 1
        view = out.reshape(*leading, *counts)
        ahead = len(leading)
        return view.transpose(*range(ahead), *(ahead + axis for axis in first.back))

    def _fill(self, part: Part, cuts: Index, out: np.ndarray) -> None:
        file, tensor = self._found[part.name]
        if tensor.dtype == out.dtype:
            read_open(self._files[file], tensor, cuts, part.apart, out)
            return
        raw = read_open(self._files[file], tensor, cuts, part.apart)
        with np.errstate(over="raise"):
            try:
                out[...] = raw.astype(out.dtype)
            except FloatingPointError:
                raise ValueError(
                    f"param_dtype: got {out.dtype}, which cannot hold the numbers of {part.name}, stored as"
                    f" {tensor.dtype}: take float32 or bfloat16"
                ) from None
