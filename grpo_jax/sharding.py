"""The mesh, and the one table that says which dimension of which array is split over which of its axes.

Arrays name their dimensions by what they mean ("embed", "heads", ...: *logical axes*); a table of rules maps a name to
axes of the mesh. A different layout is a different table, never a change of a model.

=======  ========================================================================================
axis     what it splits
=======  ========================================================================================
slice    rows, over slices that only the data-centre network joins
data     rows; every shard holds the parameters
fsdp     rows, and the parameters too, which are gathered where they are used
tensor   heads, vocabulary and the inside of the feed-forward: the work on one row
=======  ========================================================================================

All four axes always exist, of size 1 where unused, so no code asks which there are. Axis types are Auto: shardings are
constraints, and the compiler places the communication.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grpo_jax.types import Array, row_axis

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")

Rules = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis -> axis or axes of the mesh, None where the dimension stays whole."""
LogicalAxes = tuple[str | None, ...]
"""Name of every dimension of an array, None for a dimension that is never split."""
Tree = TypeVar("Tree")

RULES: Rules = {
    "prompts": BATCH_AXES,
    "rows": BATCH_AXES,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": None,
    "layers": None,
    "head": None,
    "position": None,
    "rank": None,
}
"""Training: parameters are split over fsdp and tensor."""

ROLLOUT_RULES: Rules = {**RULES, "embed": None}
"""Sampling: parameters are whole on every fsdp shard, so that decoding a token gathers no weights."""


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes `AXES` over all of `devices` (`jax.Device`s; default: every device of every process).

    `shape` gives sizes by axis, 1 where an axis is not named; None puts every device on "fsdp". Where devices come from
    several TPU slices, only the axis "slice" crosses the network between them.

    Raises ValueError for an unknown axis, a size below 1, sizes whose product is not the number of devices, and a
    "slice" axis other than the number of TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes({"fsdp": len(devices)} if shape is None else shape, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] == slices:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *sizes[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    elif slices > 1 and devices[0].platform == "tpu":
        raise ValueError(
            f"the mesh has {sizes[0]} on axis 'slice' but its devices come from {slices} TPU slices; "
            f"set 'slice' to {slices} and let the other axes multiply to {len(devices) // slices}"
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_divides(count: int, mesh: Mesh | None, *, what: str = "prompts", axes: Sequence[str] = BATCH_AXES) -> None:
    """ValueError, naming the nearest valid numbers, unless `count` divides by the product of the mesh axes `axes`."""
    parts = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)
    if count % parts == 0 and count > 0:
        return
    below = count // parts * parts
    nearest = f"{below} or {below + parts}" if below > 0 else f"{parts}"
    sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes) if mesh is not None else "one device"
    raise ValueError(f"{count} {what} do not divide over {parts} shards ({sizes}); use {nearest}, or another mesh")


def spec(axes: LogicalAxes, rules: Rules, mesh: Mesh, shape: Sequence[int] | None = None) -> PartitionSpec:
    """Which mesh axes split each dimension of an array whose dimensions are named `axes`.

    With `shape` given, a dimension that does not divide by the size of its mesh axes is left whole: two key/value heads
    on a tensor axis of 4 are held by every shard. (Rows and prompts must divide: `check_divides`.)

    Raises ValueError for a name without a rule and for a mesh axis that would split two dimensions.
    """
    found = targets(axes, rules, mesh.shape, shape)
    return PartitionSpec(*(target if len(target) > 1 else (target[0] if target else None) for target in found))


def targets(
    axes: LogicalAxes, rules: Rules, sizes: Mapping[str, int], shape: Sequence[int] | None = None
) -> list[tuple[str, ...]]:
    """The mesh axes that split each dimension of an array, () for none: `spec` of a mesh of which `sizes` are known."""
    if shape is not None and len(shape) != len(axes):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(shape)} dimensions but is named {axes}")
    found = [_target(name, rules) for name in axes]
    named = [axis for target in found for axis in target]
    if len(named) != len(set(named)):
        raise ValueError(f"the rules put two dimensions of {axes} on the same mesh axis: {found}")
    if shape is not None:
        found = [
            target if size % math.prod(sizes[axis] for axis in target) == 0 else ()
            for target, size in zip(found, shape, strict=True)
        ]
    return found


def sharding_tree(axes_tree: object, shapes_tree: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """`NamedSharding` for every leaf of `shapes_tree` (arrays or `jax.ShapeDtypeStruct`).

    `axes_tree` has the same structure, with a tuple of logical axes at every leaf.
    """
    return jax.tree.map(lambda leaf, axes: _sharding(leaf, mesh, axes, rules), shapes_tree, axes_tree)


def constrain(x: Array, mesh: Mesh | None, axes: LogicalAxes, rules: Rules = RULES) -> Array:
    """`x`, which the compiler is told to lay out as `rules` say of `axes`. Without a mesh: `x`."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, _sharding(x, mesh, axes, rules))


def constrain_tree(tree: Tree, mesh: Mesh | None, axes_tree: object, rules: Rules = RULES) -> Tree:
    """`constrain` on every leaf; `axes_tree` as in `sharding_tree`."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding_tree(axes_tree, tree, mesh, rules))


def place(tree: Tree, mesh: Mesh | None, axes_tree: object, rules: Rules = RULES) -> Tree:
    """`tree` with every leaf on the mesh as `rules` say; `axes_tree` as in `sharding_tree`. Without a mesh: `tree`.

    Leaves are host arrays, equal on every process, or arrays that are on the devices of the mesh already.
    """
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf, axes: _put(leaf, _sharding(leaf, mesh, axes, rules)), tree, axes_tree)


def place_rows(record: Tree, mesh: Mesh | None) -> Tree:
    """A record whose leaves all lead with prompts or rows, split over the batch axes. Without a mesh: the record.

    Where rows are the second axis (`types.row_axis`) that one is split. Every process passes the whole record, with
    equal contents, and keeps what its devices hold. Raises ValueError when a number of rows does not divide by that of
    the shards.
    """
    if mesh is None:
        return record

    def put(path: tuple[Any, ...], leaf: Array) -> Array:
        axis = row_axis(path)
        check_divides(leaf.shape[axis], mesh, what="prompts or rows")
        return _put(leaf, NamedSharding(mesh, PartitionSpec(*([None] * axis), BATCH_AXES)))

    return jax.tree_util.tree_map_with_path(put, record)


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """`tree` whole on every device of the mesh. Without a mesh: `tree`."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def global_norm(tree: object) -> Array:
    """Euclidean norm of all leaves together, f32[] (f64[] if a leaf is): ``sqrt(sum over leaves of sum(x^2))``.

    Squares are summed leaf by leaf, in float32 at least. Flattening a leaf to one dimension first, as a dot product
    with itself would, makes the compiler gather a sharded leaf whole onto every device.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32
    squares = [jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in leaves]
    return jnp.sqrt(sum(squares, start=jnp.zeros((), dtype)))


def _sharding(leaf: chex.Array | jax.ShapeDtypeStruct, mesh: Mesh, axes: LogicalAxes, rules: Rules) -> NamedSharding:
    """Layout on `mesh` of one array whose dimensions are named `axes`."""
    return NamedSharding(mesh, spec(axes, rules, mesh, leaf.shape))


def _put(leaf: chex.Array, sharding: NamedSharding) -> Array:
    """`leaf` laid out as `sharding`, also when some devices belong to other processes."""
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    # Each process holds the whole value and cuts its own parts out of it: nothing is sent, nothing is compared.
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _target(name: str | None, rules: Rules) -> tuple[str, ...]:
    """Mesh axes of one logical axis, () for none."""
    if name is None:
        return ()
    if name not in rules:
        nearest = difflib.get_close_matches(name, rules, n=1, cutoff=0.0)
        raise ValueError(f"no rule for the logical axis {name!r}; known are {sorted(rules)}, nearest is {nearest[0]!r}")
    target = rules[name]
    return target if isinstance(target, tuple) else () if target is None else (target,)


def _sizes(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Sizes of all `AXES`, checked."""
    for axis, size in shape.items():
        if axis not in AXES:
            nearest = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.0)
            raise ValueError(f"a mesh has no axis {axis!r}; axes are {list(AXES)}, nearest is {nearest[0]!r}")
        if size < 1:
            raise ValueError(f"mesh axis {axis!r} has size {size}; sizes are whole numbers from 1 up")
    if math.prod(shape.values()) != count:
        nearest = _nearest_shape(shape, count)
        raise ValueError(
            f"a mesh {dict(shape)} has {math.prod(shape.values())} places but there are {count} devices; "
            f"the sizes must multiply to {count}, for instance {nearest}"
        )
    return tuple(shape.get(axis, 1) for axis in AXES)


def _nearest_shape(shape: Mapping[str, int], count: int) -> dict[str, int]:
    """Sizes for the same axes that multiply to `count`, with the smallest summed change of their logarithms."""
    options: list[tuple[int, ...]] = [()]
    for place in range(len(shape)):
        last = place == len(shape) - 1
        remaining = [(option, count // math.prod(option)) for option in options]
        options = [
            (*option, size)
            for option, rest in remaining
            for size in ([rest] if last else range(1, rest + 1))
            if rest % size == 0
        ]
    wanted = tuple(shape.values())
    best = min(options, key=lambda o: sum(abs(math.log(a / b)) for a, b in zip(o, wanted, strict=True)))
    return dict(zip(shape, best, strict=True)) or {"fsdp": count}
