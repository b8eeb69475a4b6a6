"""Published weights into parameters: all is checked before it is read, and a process reads what its devices hold."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from grpo_jax.models import source
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import CRITIC, from_policy
from grpo_jax.models.families import PICTURES, TEXT_PART, WITH_PICTURES
from grpo_jax.models.names import NAMES, Part, parts
from grpo_jax.models.parts import join
from grpo_jax.models.published import read_config
from grpo_jax.models.safetensors import DTYPES, Index, Tensor, brief, cast, empty, read_open
from grpo_jax.models.source import Placed
from grpo_jax.models.stored import is_stored, restore
from grpo_jax.models.table import abstract, adapters, axes, stack
from grpo_jax.sharding import sharding_tree
from grpo_jax.types import Array, Params

READABLE = ("F32", "F16", "BF16")
"""Dtypes of tensors that are read as weights. Integers and 8-bit floats are quantised, with scales of their own."""

LARGE = 2**27
"""Bytes of memory from which on threads take turns with it instead of each having its own."""


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

    What `changes` ask for and no file holds is made: of a critic the head is zero, its tower a copy of the policy's
    decoder; adapters are those of ``models.adapters(jax.random.key(0), config)``.

    Raises ValueError for whatever is wrong with the folder, before anything is read: tensors that are missing, left
    over or of another shape or dtype are listed all at once.
    """
    folder = source.locate(path, revision=revision)
    config = read_config(source.checked_file(folder, source.CONFIG), **changes)
    policy = dataclasses.replace(config, critic=None, critic_detached=False, lora=None)
    if is_stored(folder):
        params = restore(folder, policy, mesh)
        params = stack(params) if config.stacked else params
    else:
        found = _experts_apart(_text_part(source.tensors(folder), str(config.family)), policy)
        wanted = parts(policy, str(config.family))
        _check(folder, policy, wanted, found)
        params = _Reader(policy, wanted, found, mesh).tree()
    if config.critic is not None:
        with_critic = dataclasses.replace(config, lora=None)
        fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract(with_critic)[CRITIC])
        params = from_policy({**params, CRITIC: fresh})
    if config.lora is not None:
        params = join(params, adapters(jax.random.key(0), config))
    return params, config


def _text_part(found: dict[str, Placed], architecture: str) -> dict[str, Placed]:
    """Tensors by the names that they have where there is a text part alone."""
    if architecture not in [inside for inside, _ in WITH_PICTURES.values()]:
        return found
    kept = {name: placed for name, placed in found.items() if not name.startswith(PICTURES)}
    if not all(name.startswith(TEXT_PART) for name in kept):
        return found
    return {name.removeprefix(TEXT_PART): placed for name, placed in kept.items()}


def _experts_apart(found: dict[str, Placed], config: ModelConfig) -> dict[str, Placed]:
    """Tensors by the names that they have where every expert has its own.

    In memory, and in files if told so, transformers 5 keeps the experts of a layer in two tensors, ``gate_up_proj``
    [E, 2 F, D] and ``down_proj`` [E, D, F]: of each expert a range of bytes is its own.
    """
    count, hidden, width = config.experts, config.expert_hidden, config.width
    if not count:
        return found
    inner, apart = NAMES[str(config.family)], {}
    shapes = {"gate_up_proj": (count, 2 * hidden, width), "down_proj": (count, width, hidden)}
    kinds = {"gate_up_proj": ("expert_gate", "expert_up"), "down_proj": ("expert_down",)}
    for name, (file, tensor) in found.items():
        layer, _, kind = name.partition("mlp.experts.")
        if name.endswith("mlp.gate.weight"):
            apart[name.removesuffix("mlp.gate.weight") + inner["router"]] = found[name]
        elif tensor.shape != shapes.get(kind):
            apart[name] = found[name]
        else:
            size = (tensor.end - tensor.begin) // (count * len(kinds[kind]))
            shape = (tensor.shape[1] // len(kinds[kind]), tensor.shape[2])
            own = [layer + inner[one].format(expert=expert) for expert in range(count) for one in kinds[kind]]
            starts = range(tensor.begin, tensor.end, size)
            cut = {
                n: Placed(file, Tensor(tensor.dtype, shape, at, at + size)) for n, at in zip(own, starts, strict=True)
            }
            # Where an expert has a tensor of its own too, this one is left over.
            apart |= {name: found[name]} if cut.keys() & found.keys() else cut
    return apart


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


class _Cut(NamedTuple):
    """A part of a parameter: which tensors it is made of, what of each, and how that becomes the part."""

    tensors: list[Part]
    index: Index  # of every tensor, apart
    shape: tuple[int, ...]  # of what is read: tensors first
    leading: tuple[int, ...]  # the axes of layers and experts, which `tensors` runs over
    back: tuple[int, ...]

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The part, as a view of the memory that was read into."""
        ahead = len(self.leading)
        apart = memory.reshape(*self.leading, *self.shape[1:])
        return apart.transpose(*range(ahead), *(ahead + axis for axis in self.back))


class _Reader:
    """Reads parameters; several at a time, in threads.

    A matrix is read as it lies in the file, and JAX takes over a transposed view of that: it transposes as fast as it
    copies. The memory in between is used again; what JAX may keep as it is (a view that is in order) gets its own.
    """

    def __init__(
        self, config: ModelConfig, wanted: Mapping[str, list[Part]], found: Mapping[str, Placed], mesh: Mesh | None
    ):
        self._config, self._wanted, self._found = config, wanted, found
        self._dtype = np.dtype(jnp.dtype(config.param_dtype))
        self._shapes = abstract(config)
        self._mesh = mesh
        self._files: dict[Path, int] = {}
        self._of_thread = threading.local()
        self._of_all = types.SimpleNamespace()
        self._turn = threading.Lock()

    def tree(self) -> Params:
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._shapes)
        names = ["/".join(str(part.key) for part in path) for path, _ in leaves]
        layouts = [None] * len(names)
        if self._mesh is not None:
            layouts = jax.tree.leaves(sharding_tree(axes(self._config), self._shapes, self._mesh))
        order = sorted(range(len(names)), key=lambda i: -math.prod(leaves[i][1].shape))
        pool = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            for file in {placed.file for placed in self._found.values()}:
                self._files[file] = os.open(file, os.O_RDONLY)
            waiting = {i: pool.submit(self._array, names[i], leaves[i][1].shape, layouts[i]) for i in order}
            done = [waiting[i].result() for i in range(len(names))]
        finally:
            pool.shutdown(cancel_futures=True)
            for file in self._files.values():
                os.close(file)
        return jax.tree.unflatten(structure, done)

    def _array(self, name: str, shape: tuple[int, ...], layout: Sharding | None) -> Array:
        if layout is None:
            return self._whole(self._cut(name, tuple((0, size) for size in shape)))
        seen: dict[tuple, np.ndarray] = {}

        def part(index: Index | None) -> np.ndarray:
            bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index or (), shape, strict=True))
            if bounds not in seen:
                cut = self._cut(name, bounds)
                seen[bounds] = cut.view(self._fill(cut, empty(cut.shape, self._dtype)))
            return seen[bounds]

        return jax.make_array_from_callback(shape, layout, part)

    def _whole(self, cut: _Cut) -> Array:
        memory = empty(cut.shape, self._dtype)
        if cut.view(memory).flags.c_contiguous:
            return jax.device_put(cut.view(self._fill(cut, memory)))
        with self._reused(memory.nbytes) as again:
            memory = again.view(self._dtype).reshape(cut.shape)
            return jax.block_until_ready(jax.device_put(cut.view(self._fill(cut, memory))))

    @contextlib.contextmanager
    def _reused(self, size: int) -> Iterator[np.ndarray]:
        """Bytes to read into, which the next one overwrites: the thread's own, or, where they are many, of all."""
        with self._turn if size > LARGE else contextlib.nullcontext():
            holder = self._of_all if size > LARGE else self._of_thread
            held = getattr(holder, "memory", None)
            if held is None or held.size < size:
                held = holder.memory = empty((size,), np.dtype(np.uint8))
            yield held[:size]

    def _cut(self, name: str, bounds: Sequence[tuple[int, int]]) -> _Cut:
        """The part of a parameter between `bounds` of each of its axes."""
        leading, names = (), [name]
        if self._config.stacked and name.startswith("layers/"):
            (first, last), *bounds = bounds
            names = [f"layers/{i}/{name.removeprefix('layers/')}" for i in range(first, last)]
            leading = (last - first,)
        tensors = [self._wanted[one] for one in names]
        if tensors[0][0].expert is not None:
            (first, last), *bounds = bounds
            tensors = [made_of[first:last] for made_of in tensors]
            leading = (*leading, last - first)
        flat = [part for made_of in tensors for part in made_of]
        index = tuple(slice(*bounds[axis]) for axis in flat[0].order)
        return _Cut(flat, index, (len(flat), *(cut.stop - cut.start for cut in index)), leading, flat[0].back)

    def _fill(self, cut: _Cut, out: np.ndarray) -> np.ndarray:
        for part, place in zip(cut.tensors, out, strict=True):
            file, tensor = self._found[part.name]
            if tensor.dtype == out.dtype:
                read_open(self._files[file], tensor, cut.index, part.apart, place)
            else:
                raw = read_open(self._files[file], tensor, cut.index, part.apart)
                place[...] = cast(raw, out.dtype, what=part.name)
        return out
