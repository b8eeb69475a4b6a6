"""The mesh and the rules: what is split over what, said in numbers of elements a device holds."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from grpo_jax import sharding
from grpo_jax.types import Prompts
from tests.laws import tiny

SHAPES = {
    "1x8": {"data": 1, "fsdp": 8},
    "8x1": {"data": 8, "fsdp": 1},
    "2x4": {"fsdp": 2, "tensor": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}
AXES_TREE = {
    "embedding": ("vocab", "embed"),
    "layers": {"query": ("layers", "embed", "heads", "head"), "norm": ("embed",)},
}


@pytest.fixture(params=list(SHAPES), name="mesh")
def every_mesh(request):
    return sharding.make_mesh(SHAPES[request.param])


def some_params():
    rng = np.random.default_rng(0)
    shapes = {"embedding": (16, 8), "layers": {"query": (2, 8, 4, 2), "norm": (8,)}}
    return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))


def parts(mesh, *axes):
    """Number of shards that these mesh axes make together."""
    return int(np.prod([mesh.shape[axis] for axis in axes], initial=1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_mesh_has_all_four_axes_and_every_device(shape):
    mesh = sharding.make_mesh(shape)
    assert mesh.axis_names == ("slice", "data", "fsdp", "tensor")
    assert dict(mesh.shape) == {"slice": 1, "data": 1, "fsdp": 1, "tensor": 1, **shape}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


def test_without_a_shape_every_device_is_on_fsdp():
    assert dict(sharding.make_mesh().shape) == {"slice": 1, "data": 1, "fsdp": 8, "tensor": 1}
    assert dict(sharding.make_mesh(devices=jax.devices()[:3]).shape)["fsdp"] == 3
    assert sharding.make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"data": 2, "fsdp": 3}, "6 places but there are 8 devices.*{'data': 2, 'fsdp': 4}"),
        ({"tensor": 16}, "16 places but there are 8 devices.*{'tensor': 8}"),
        ({}, "1 places but there are 8 devices.*{'fsdp': 8}"),
        ({"fsdb": 8}, "no axis 'fsdb'.*nearest is 'fsdp'"),
        ({"fsdp": 0}, "size 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(shape, words):
    with pytest.raises(ValueError, match=words):
        sharding.make_mesh(shape)


@dataclass(frozen=True)
class OtherDevice:
    """A device of another machine, as far as laying out a mesh is concerned."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "some accelerator"
    process_index: int = 0


def test_only_the_slice_axis_crosses_slices():
    # Slices come interleaved: even ids on slice 0, odd ids on slice 1.
    mesh = sharding.make_mesh({"slice": 2, "fsdp": 4}, [OtherDevice(k, k % 2) for k in range(8)])
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices, np.broadcast_to(np.arange(2)[:, None, None, None], (2, 1, 4, 1)))


def test_tpu_slices_must_be_on_the_slice_axis():
    devices = [OtherDevice(k, k // 4, platform="tpu") for k in range(8)]
    with pytest.raises(ValueError, match=r"2 TPU slices; set 'slice' to 2 .* multiply to 4"):
        sharding.make_mesh({"fsdp": 8}, devices)


def test_specs_by_hand():
    mesh = sharding.make_mesh(SHAPES["2x2x2"])
    rules, rollout = sharding.RULES, sharding.ROLLOUT_RULES
    assert sharding.spec(("layers", "embed", "heads", "head"), rules, mesh) == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert sharding.spec(("layers", "embed", "mlp"), rollout, mesh) == PartitionSpec(None, None, "tensor")
    assert sharding.spec(("rows", None), rules, mesh) == PartitionSpec(("slice", "data", "fsdp"), None)
    assert sharding.spec((), rules, mesh) == PartitionSpec()


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    axes = ("embed", "kv_heads", "head")
    assert sharding.spec(axes, sharding.RULES, mesh, (8, 4, 2)) == PartitionSpec("fsdp", "tensor", None)
    assert sharding.spec(axes, sharding.RULES, mesh, (8, 2, 2)) == PartitionSpec("fsdp", None, None)
    assert sharding.spec(axes, sharding.RULES, mesh, (7, 2, 2)) == PartitionSpec(None, None, None)


@pytest.mark.parametrize(
    ("axes", "shape", "words"),
    [
        (("embeds",), None, "no rule for the logical axis 'embeds'.*nearest is 'embed'"),
        (("heads", "mlp"), None, "two dimensions"),
        (("heads", "head"), (4,), r"shape \(4,\) has 1 dimensions"),
    ],
)
def test_wrong_names_are_refused(axes, shape, words):
    with pytest.raises(ValueError, match=words):
        sharding.spec(axes, sharding.RULES, sharding.make_mesh(), shape)


def test_a_count_that_does_not_divide_names_its_neighbours():
    mesh = sharding.make_mesh(SHAPES["2x2x2"])  # 4 shards of rows
    for count in (4, 8, 400):
        sharding.check_divides(count, mesh)
    with pytest.raises(ValueError, match=r"6 prompts do not divide over 4 shards .*data 2 x fsdp 2.* use 4 or 8"):
        sharding.check_divides(6, mesh)
    with pytest.raises(ValueError, match=r"3 prompts .* use 4,"):
        sharding.check_divides(3, mesh)
    with pytest.raises(ValueError, match=r"5 heads do not divide over 2 .* use 4 or 6"):
        sharding.check_divides(5, mesh, what="heads", axes=("tensor",))
    sharding.check_divides(5, None)


def test_placing_splits_parameters_and_keeps_their_values(mesh):
    params = some_params()
    for rules, embed in ((sharding.RULES, ("fsdp",)), (sharding.ROLLOUT_RULES, ())):
        placed = sharding.place(params, mesh, AXES_TREE, rules)
        jax.tree.map(np.testing.assert_array_equal, placed, params)
        held = jax.tree.map(lambda x: x.addressable_shards[0].data.size, placed)
        tensor, split = parts(mesh, "tensor"), parts(mesh, *embed)
        query = 2 * 8 * 4 * 2 // tensor // split
        assert held == {"embedding": 16 * 8 // tensor // split, "layers": {"query": query, "norm": 8 // split}}


def test_constraints_change_the_layout_and_not_the_numbers(mesh):
    params, x = some_params(), np.arange(48, dtype=np.float32).reshape(8, 6)

    @jax.jit
    def run(params, x):
        tree = sharding.constrain_tree(params, mesh, AXES_TREE, sharding.RULES)
        return tree, sharding.constrain(x, mesh, ("rows", None)), sharding.constrain(x, mesh, (None, "vocab"))

    tree, rows, vocab = run(params, x)
    jax.tree.map(np.testing.assert_array_equal, tree, params)
    expected = sharding.sharding_tree(AXES_TREE, params, mesh, sharding.RULES)
    same = jax.tree.map(lambda leaf, layout: leaf.sharding.is_equivalent_to(layout, leaf.ndim), tree, expected)
    assert all(jax.tree.leaves(same))
    for value in (rows, vocab):
        np.testing.assert_array_equal(value, x)
    assert rows.addressable_shards[0].data.shape == (8 // parts(mesh, *sharding.BATCH_AXES), 6)
    assert vocab.addressable_shards[0].data.shape == (
        8,
        6 // parts(mesh, "tensor") if parts(mesh, "tensor") != 4 else 6,
    )


def test_without_a_mesh_nothing_happens():
    params = some_params()
    assert sharding.constrain(params["embedding"], None, ("vocab", "embed")) is params["embedding"]
    assert sharding.constrain_tree(params, None, AXES_TREE) is params
    assert sharding.place(params, None, AXES_TREE) is params
    assert sharding.place_rows(params, None) is params
    assert sharding.replicate(params, None) is params


def test_rows_are_split_over_the_batch_axes_and_kept_in_order(mesh):
    prompts = Prompts(
        tokens=jnp.arange(48, dtype=jnp.int32).reshape(16, 3),
        length=jnp.full(16, 3, jnp.int32),
        draw=jnp.arange(16, dtype=jnp.int32),
        row=jnp.arange(16, dtype=jnp.int32),
    )
    placed = sharding.place_rows(prompts, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, prompts)
    shards = parts(mesh, *sharding.BATCH_AXES)
    assert placed.tokens.addressable_shards[0].data.shape == (16 // shards, 3)
    assert {shard.index[0].start or 0 for shard in placed.draw.addressable_shards} == set(range(0, 16, 16 // shards))
    if shards > 1:
        with pytest.raises(ValueError, match="15 prompts or rows do not divide"):
            sharding.place_rows(jnp.zeros(15, jnp.float32), mesh)


def test_choices_of_experts_are_split_by_rows_too(mesh):
    count = tiny.P * tiny.G
    choices = np.arange(5 * count * 2, dtype=np.int32).reshape(5, count, 2, 1)
    placed = sharding.place_rows(tiny.rows().replace(experts=choices), mesh)
    assert placed.experts is not None
    np.testing.assert_array_equal(placed.experts, choices)
    assert placed.experts.addressable_shards[0].data.shape == (5, count // parts(mesh, *sharding.BATCH_AXES), 2, 1)


def test_replicated_values_are_whole_everywhere(mesh):
    placed = sharding.replicate({"step": np.int32(3), "coef": np.ones(5, np.float32)}, mesh)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    assert [int(shard.data) for shard in placed["step"].addressable_shards] == [3] * 8


def test_global_norm_by_hand():
    tree = {"a": jnp.asarray([[1.0, 2.0]], jnp.float32), "b": (jnp.asarray(2.0, jnp.float32), jnp.zeros((2, 0)))}
    assert float(sharding.global_norm(tree)) == 3.0  # sqrt(1 + 4 + 4)
    assert float(sharding.global_norm({})) == 0.0


def test_global_norm_sums_in_float32():
    # 4096 ones: a bfloat16 sum would stop at 256, where adding 1 changes nothing any more.
    norm = sharding.global_norm({"w": jnp.ones((64, 64), jnp.bfloat16)})
    assert (norm.dtype, float(norm)) == (jnp.float32, 64.0)


def test_global_norm_gathers_nothing(mesh):
    params = sharding.place(some_params(), mesh, AXES_TREE)
    run = jax.jit(sharding.global_norm).lower(params).compile()
    text = str(run.as_text())
    assert ("all-reduce" in text) == (parts(mesh, "fsdp", "tensor") > 1)
    assert "all-gather" not in text
    assert "all-to-all" not in text
    expected = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(some_params())))
    assert float(run(params)) == pytest.approx(expected, rel=1e-6)


WORKER = """
import sys
import jax
import numpy as np
from jax.sharding import PartitionSpec
from grpo_jax import sharding

jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
mesh = sharding.make_mesh({"data": 2, "tensor": 2})
rows = sharding.place_rows(np.arange(12, dtype=np.float32).reshape(4, 3), mesh)
weights = sharding.place(np.ones((3, 4), np.float32), mesh, ("embed", "mlp"))
one = sharding.replicate(np.float32(1), mesh)
assert not rows.is_fully_addressable
again = sharding.place(weights, mesh, ("embed", "mlp"), sharding.ROLLOUT_RULES)
product = jax.jit(lambda r, w, s: (r @ w).sum() + s)(rows, again, one)
local = sorted({tuple(shard.data[:, 0].tolist()) for shard in rows.addressable_shards})
print("RESULT", local, float(product), float(sharding.global_norm({"w": weights})), flush=True)
"""


def test_two_processes_hold_their_own_rows_of_the_same_record():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = str(Path(sharding.__file__).resolve().parents[1])
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": root}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, port, str(k)], env=env, stdout=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    try:
        printed = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    results = [line for text in printed for line in text.splitlines() if line.startswith("RESULT")]
    # Rows 0 1 2 | 3 4 5 on the first process, 6 7 8 | 9 10 11 on the second; 4 columns of ones: 4 * 66 + 1; 12 ones.
    norm = float(np.sqrt(np.float32(12)))
    assert results == [f"RESULT [({a}, {a + 3.0})] 265.0 {norm}" for a in (0.0, 6.0)]
