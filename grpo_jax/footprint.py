"""How many bytes a run keeps at a time, worked out from shapes: nothing is made, and no device is asked.

With n parameters trained, their dtypes, and the sizes of a step:

    cache of keys and values    2 L J C  P (S - 1 + G T)  bytes of the compute dtype, over the chunks of a step
    logits of a chunk           tokens at a time x V x bytes of the dtype of log-probabilities, on every device

What the backward pass keeps between layers is not among them: it is what remains of a device's memory, and
``train.microbatches`` and ``model.remat`` make it fit.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.loop.setup import chunks
from grpo_jax.models import abstract, axes, divide, like, trained, without_adapters, without_critic
from grpo_jax.models.logprobs import chunk_of
from grpo_jax.sharding import AXES, BATCH_AXES, RULES, spec
from grpo_jax.train import refers
from grpo_jax.types import Params
from grpo_jax.updates import begin, begin_reference, moves


class Bytes(NamedTuple):
    """The size of something."""

    whole: int  # over all devices, what every one of them has counted once
    device: int  # on the device that has most of it


def memory(experiment: Experiment) -> dict[str, Bytes]:
    """The size of each thing that a run of `experiment` keeps, by name, under its mesh."""
    model, mesh = experiment.model, _mesh(experiment.mesh)
    own, frozen = divide(abstract(model), trained(model, experiment.train.frozen))
    placed = partial(_placed, names=axes(model), mesh=mesh)
    settings = step_settings(experiment).gradient
    state = jax.eval_shape(partial(begin, settings=settings), own)
    return {
        "trained parameters": placed(own),
        "frozen parameters": placed(frozen),
        "gradients": placed(own),
        "optimiser state": _sum(placed(part) for part in _parts(state, own)),
        "reference policy": placed(_reference(experiment, own)),
        "keys and values of a rollout": _cache(experiment, mesh),
        "logits of a chunk": _logits(experiment, mesh),
    }


def _mesh(shape: Mapping[str, int] | None) -> Mesh:
    """A mesh of the sizes of `shape`, without devices."""
    return cast(Mesh, AbstractMesh(tuple((shape or {}).get(axis, 1) for axis in AXES), AXES))


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _placed(part: Any, *, names: Mapping, mesh: Mesh) -> Bytes:
    """Some of the parameters, or arrays of their names: split by the rules where they have the shapes of parameters."""
    named = like(names, part) if isinstance(part, Mapping) else None
    whole = device = 0
    leaves = jax.tree.leaves(part)
    layouts = [None] * len(leaves) if named is None else jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, tuple))
    for leaf, layout in zip(leaves, layouts, strict=True):
        split = 1
        if layout is not None and len(layout) == len(leaf.shape):
            targets = [x if isinstance(x, tuple) else (x,) for x in spec(layout, RULES, mesh, leaf.shape) if x]
            split = math.prod(mesh.shape[axis] for target in targets for axis in target)
        whole, device = whole + _size(leaf), device + _size(leaf) // split
    return Bytes(whole, device)


def _parts(state: Any, own: Params) -> list[Any]:
    """The trees of the shape of the parameters `own` in what an optimiser keeps, and its other arrays."""
    shape = jax.tree.structure(own)
    return jax.tree.leaves(state, is_leaf=lambda x: jax.tree.structure(x) == shape)


def _sum(found: Any) -> Bytes:
    rows = list(found)
    return Bytes(sum(row.whole for row in rows), sum(row.device for row in rows))


def _reference(experiment: Experiment, own: Params) -> Params:
    """What of the reference policy is no part of another one: nothing where it is the policy without its adapters."""
    rule, policy = experiment.train.reference, without_critic(own)
    if not refers(experiment.recipe):
        return {}
    if moves(rule):
        return jax.eval_shape(partial(begin_reference, rule), policy)
    return without_adapters(policy)


def _cache(experiment: Experiment, mesh: Mesh) -> Bytes:
    model, train = experiment.model, experiment.train
    tokens = max(experiment.data.prompt_width - 1, 1) + train.group_size * experiment.sampling.max_tokens
    prompts = train.prompts // chunks(experiment)
    numbers = 2 * model.layers * model.kv_heads * model.head_width * prompts * tokens
    whole = numbers * jnp.dtype(model.compute_dtype).itemsize
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    heads = mesh.shape["tensor"] if model.kv_heads % mesh.shape["tensor"] == 0 else 1
    return Bytes(whole, whole // (rows * heads))


def _logits(experiment: Experiment, mesh: Mesh) -> Bytes:
    model, train = experiment.model, experiment.train
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = train.prompts * train.group_size // (train.minibatches * train.microbatches)
    tokens = min(train.chunk or chunk_of(model), max(rows * experiment.sampling.max_tokens // devices, 1))
    each = tokens * model.vocab * jnp.dtype(model.logprob_dtype).itemsize
    parts = mesh.shape["tensor"] if model.vocab % mesh.shape["tensor"] == 0 else 1
    return Bytes(each * devices, each // parts)
