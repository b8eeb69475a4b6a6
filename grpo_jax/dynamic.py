"""Dynamic sampling: groups that teach something are gathered over rounds, and what is left over waits for a step.

A group is all rows that answer one prompt. It is *informative* unless the rewards of its valid rows are all exactly
equal (`groups.tied`; never a deviation tested against 0). DAPO (arXiv 2503.14476, section 3.2) samples prompts until a
step has its number of informative groups. As programs of fixed shapes, for steps of P prompts:

    held = opened(kept, step)           what was left over by the step before, oldest first: fewer than P groups
    held, told = gathered(held, round)  up to `rounds` times, while fewer than P informative groups are held
    trained, kept = closed(held)        the first P places are trained on, the rest is kept

There are 2P places. Before a round fewer than P informative groups are held and a round adds at most P, so none is ever
lost, fewer than P are left over, and all of them are used at the next step: a group waits for one step at most.
Where the rounds came to an end too early, the last places of a step hold refused groups whose rows are not valid: they
have weight 0 and are in no mean, count or denominator, so that the loss is that of the informative groups alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from grpo_jax import masked
from grpo_jax.groups import tied
from grpo_jax.models.arrange import arrange
from grpo_jax.types import Array, Prompts, Reward, Rollouts, row_axis

PREFIX = "dynamic."
"""Of the names in `TrainState.memory` that hold the groups left over."""
_OF_ROWS = tuple(name for name in Rollouts.__dataclass_fields__ if name not in ("prompts", "prompt"))


@dataclass(frozen=True)
class Dynamic:
    """Settings of dynamic sampling.

    At a step, rounds of `train.prompts` prompts are sampled until as many groups are informative, at most `rounds` of
    them. Informative groups beyond that are trained on first at the next step; `max_age` 0 throws them away instead,
    which keeps a step on-policy. Larger numbers than 1 are the same as 1: no group waits for longer.
    """

    rounds: int = 4
    max_age: int = 1  # steps
    component: str | None = None
    """Which component of the reward has to differ within a group, such as "accuracy"; None: the outcome."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("max_age", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train.dynamic.{name}: got {getattr(self, name)}, allowed >= {least}: change it to a number in"
                    " that range"
                )


class Groups(struct.PyTreeNode):
    """M groups of G rows; row ``m * G + g`` is the g-th row of group m. What is informative comes first, oldest first.

    Rows of places that hold no group are not valid and of length 0.
    """

    rollouts: Rollouts  # M prompts, N = M * G rows
    reward: Reward
    status: Mapping[str, Array]  # name of a text reward -> i32[N], number of the status
    informative: Array  # bool[M]


def informative(rollouts: Rollouts, reward: Reward, *, component: str | None = None) -> Array:
    """bool[P], True where the valid rows of a prompt differ in their outcome, or in the `component` of that name.

    A row whose component is nan has none and is not asked. Raises ValueError for a component that the reward lacks.
    """
    asked, valid = reward.outcome, reward.valid
    if component is not None:
        if component not in reward.components:
            raise ValueError(
                f"train.dynamic.component: got {component!r}, allowed None and"
                f" {', '.join(map(repr, sorted(reward.components))) or 'nothing else'}, the components of this reward:"
                " choose one of these"
            )
        asked = reward.components[component]
        valid = valid & ~jnp.isnan(asked)
    return ~tied(asked, rollouts.prompt, num_groups=rollouts.prompts.length.shape[0], valid=valid)


def grouped(
    rollouts: Rollouts,
    reward: Reward,
    status: Mapping[str, Array] | None = None,
    *,
    group_size: int,
    component: str | None = None,
) -> Groups:
    """The rows of P prompts, in whatever order, as groups in P places in the order of the prompts."""
    prompts = rollouts.prompts.length.shape[0]
    places = arrange(rollouts.prompt, prompts, group_size)

    def put(x: Array) -> Array:
        return places.gather(x).reshape(prompts * group_size, *x.shape[1:])

    rows = _changed(rollouts, put)
    return Groups(
        rollouts=rollouts.replace(prompt=_numbers(prompts, group_size), **rows),
        reward=jax.tree.map(put, reward),
        status=jax.tree.map(put, dict(status or {})),
        informative=informative(rollouts, reward, component=component),
    )


def blank(prompts: Prompts, *, group_size: int, width: int, choices: tuple[int, int] | None = None) -> Rollouts:
    """Rows of the shapes and dtypes that sampling gives for `prompts`, with nothing in them.

    `choices` are the numbers of layers and of experts a token in a mixture.
    """
    count = prompts.length.shape[0]
    rows, cells = (count * group_size,), (count * group_size, width)

    def none(shape: tuple[int, ...], dtype: str = "int32") -> Array:
        return jnp.zeros(shape, dtype)

    return Rollouts(
        prompts=jax.tree.map(jnp.zeros_like, prompts),
        prompt=_numbers(count, group_size),
        sample=none(rows),
        tokens=none(cells),
        length=none(rows),
        stopped=none(rows, "bool"),
        mask=none(cells, "bool"),
        logp=none(cells, "float32"),
        logp_full=none(cells, "float32"),
        version=none(rows),
        experts=None if choices is None else none((choices[0], *cells, choices[1])),
    )


def empty(like: Groups) -> Groups:
    """Groups of the shapes of `like` that holds nothing."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def opened(
    kept: Groups, step: Array, *, max_age: int = 1, mesh: Mesh | None = None
) -> tuple[Groups, Mapping[str, Array]]:
    """The 2P places that a step begins with, from what was `kept` in P, and what there is to tell.

    `step` i32[] is the version of the parameters that sample now; a group sampled more than `max_age` versions ago is
    dropped. Told: how many groups `expired`, and how many are `informative`.
    """
    del mesh
    places = kept.informative.shape[0]
    version = kept.rollouts.version.reshape(places, -1).max(axis=1)
    fresh = kept.informative & (step - version <= max_age)
    both = _joined(kept.replace(informative=fresh), empty(kept))
    held = _taken(both, jnp.argsort(~both.informative, stable=True))
    return held, {"expired": _count(kept.informative & ~fresh), "informative": _count(fresh)}


def gathered(
    held: Groups,
    rollouts: Rollouts,
    reward: Reward,
    status: Mapping[str, Array],
    *,
    group_size: int,
    component: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[Groups, Mapping[str, Any]]:
    """`held` (2P places) with the informative groups of a round of P prompts behind its own, and what there is to tell.

    The refused groups of the round take the places behind. Told: `informative` groups held now, `found` ones in
    the round, its `tokens`, and for the outcome ("reward") and each component over its rows the `sum` and `count`.
    """
    del mesh
    more = grouped(rollouts, reward, status, group_size=group_size, component=component)
    both = _joined(held, more)
    places = held.informative.shape[0]
    old = jnp.arange(both.informative.shape[0], dtype=jnp.int32) < places
    rank = jnp.where(both.informative, 0, jnp.where(old, 2, 1))
    held = _taken(both, jnp.argsort(rank, stable=True)[:places])
    seen = {"reward": reward.outcome, **reward.components}
    there = {name: reward.valid & ~jnp.isnan(values) for name, values in seen.items()}
    return held, {
        "informative": _count(held.informative),
        "found": _count(more.informative),
        "tokens": jnp.sum(rollouts.length, dtype=jnp.int32),
        "sum": {name: masked.total(values, there[name]) for name, values in seen.items()},
        "count": {name: masked.count(mask) for name, mask in there.items()},
    }


def closed(held: Groups, step: Array, *, mesh: Mesh | None = None) -> tuple[Groups, Groups, Mapping[str, Array]]:
    """What a step trains on, what it leaves over, each in P places, and what there is to tell.

    Rows of refused groups among the first P are made not valid. Told: how many places are `filled` so, how many groups
    are left over as `surplus`, and how many of those trained on are `stale`, sampled by earlier versions than `step`.
    """
    del mesh
    places = held.informative.shape[0] // 2
    index = jnp.arange(places, dtype=jnp.int32)
    first, rest = _taken(held, index), _taken(held, index + places)
    trained = first.replace(reward=first.reward.replace(valid=first.reward.valid & _rows(first, first.informative)))
    nothing = empty(rest)
    kept = jax.tree_util.tree_map_with_path(
        lambda path, x, none: jnp.where(_along(rest, x, row_axis(path)), x, none), rest, nothing
    )
    version = first.rollouts.version.reshape(places, -1).max(axis=1)
    told = {
        "filled": _count(~first.informative),
        "surplus": _count(rest.informative),
        "stale": _count(first.informative & (version < step)),
    }
    # Places that hold nothing are numbered like the others, so that the record stays one of M prompts.
    return trained, kept.replace(rollouts=kept.rollouts.replace(prompt=rest.rollouts.prompt)), told


def to_memory(kept: Groups) -> dict[str, Array]:
    """`kept` as arrays by name, for `TrainState.memory`."""
    paths, _ = jax.tree.flatten_with_path(kept)
    return {PREFIX + jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def from_memory(memory: Mapping[str, Array], like: Groups) -> Groups:
    """The groups that `to_memory` made the names of; `like` is one of its structure."""
    return jax.tree.unflatten(jax.tree.structure(like), [memory[name] for name in to_memory(like)])


def _numbers(prompts: int, group_size: int) -> Array:
    """i32[P * G], the prompt of every row."""
    return jnp.repeat(jnp.arange(prompts, dtype=jnp.int32), group_size)


def _count(mask: Array) -> Array:
    return jnp.sum(mask, dtype=jnp.int32)


def _rows(held: Groups, of_groups: Array) -> Array:
    """[M] -> [M * G], for every row what its group has."""
    places = held.informative.shape[0]
    return jnp.repeat(of_groups, held.rollouts.prompt.shape[0] // places)


def _along(held: Groups, x: Array, axis: int) -> Array:
    """Which groups are informative, laid along the `axis` of `x` that has M or M * G; wherever both are one, G is 1."""
    mask = held.informative if x.shape[axis] == held.informative.shape[0] else _rows(held, held.informative)
    return mask.reshape(-1, *([1] * (x.ndim - 1 - axis)))


def _changed(rollouts: Rollouts, change: Callable[[Array], Array]) -> dict[str, Array | None]:
    """Name -> what `change` makes of each array of `rollouts` that has rows, which it sees first."""
    found: dict[str, Array | None] = {name: change(getattr(rollouts, name)) for name in _OF_ROWS if name != "experts"}
    if rollouts.experts is not None:
        found["experts"] = jnp.swapaxes(change(jnp.swapaxes(rollouts.experts, 0, 1)), 0, 1)
    return found


def _joined(one: Groups, other: Groups) -> Groups:
    """The groups of both."""
    both = jax.tree_util.tree_map_with_path(
        lambda path, *leaves: jnp.concatenate(leaves, axis=row_axis(path)), one, other
    )
    return _numbered(both)


def _taken(held: Groups, order: Array) -> Groups:
    """The groups of numbers `order` i32[M'], in that order."""
    places = held.informative.shape[0]

    def whole(x: Array) -> Array:
        return x[order]

    def rows(x: Array) -> Array:
        return x.reshape(places, -1, *x.shape[1:])[order].reshape(-1, *x.shape[1:])

    rollouts = held.rollouts.replace(
        prompts=jax.tree.map(whole, held.rollouts.prompts),
        prompt=rows(held.rollouts.prompt),
        **_changed(held.rollouts, rows),
    )
    taken = Groups(
        rollouts=rollouts,
        reward=jax.tree.map(rows, held.reward),
        status=jax.tree.map(rows, held.status),
        informative=whole(held.informative),
    )
    return _numbered(taken)


def _numbered(held: Groups) -> Groups:
    places = held.informative.shape[0]
    numbers = _numbers(places, held.rollouts.prompt.shape[0] // places)
    return held.replace(rollouts=held.rollouts.replace(prompt=numbers))
