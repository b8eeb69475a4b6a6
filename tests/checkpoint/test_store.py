"""Damaged, foreign and half-written checkpoints are told apart from good ones; what comes back is bit for bit."""

import dataclasses
import errno
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    abstract,
    identity_difference,
    leaf_digests,
    store,
)
from grpo_jax.lifeline import Exit
from grpo_jax.types import TrainState

IDENTITY = {"config": "4f2a", "jax": "0.10.2"}


def a_state(seed=0, *, coef=None, memory=None, opt=None):
    rng = np.random.default_rng(seed)
    params = {
        "embed": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "layers": {"w": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32), "b": jnp.zeros(8, jnp.float32)},
    }
    transform = opt or optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 100)))
    # The structure of a real optimiser with numbers in it, as after some updates.
    opt_state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 50, x.dtype), transform.init(params))
    return TrainState(
        params=params,
        opt_state=opt_state,
        step=jnp.int32(seed),
        cursor=jnp.int32(10 * seed),
        skipped=jnp.int32(0),
        coef=coef or {},
        memory={"centroids": jnp.asarray(rng.normal(size=(4, 2)), jnp.bfloat16)} if memory is None else memory,
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def opened(folder, said=None, **options):
    return Checkpoints(folder, **{"identity": IDENTITY, "warn": (said if said is not None else []).append, **options})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = opened(folder)
    for index in (1, 2):
        checkpoints.save(index, a_state(index), {"attempt": 1, "metric": 0.1})
    checkpoints.close()
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """Checkpoints 1 and 2 with states 1 and 2, a copy of one's own."""
    return shutil.copytree(original, tmp_path / "saved")


def restored(folder, said=None, **options):
    checkpoints = opened(folder, said, **options)
    try:
        return checkpoints.restore(abstract(a_state()))
    finally:
        checkpoints.close()


# What was saved comes back


def test_a_state_comes_back_bit_for_bit_with_the_structure_of_the_target(saved):
    found = restored(saved)
    assert found is not None and (found.index, found.meta) == (2, {"attempt": 1, "metric": 0.1})
    same(found.state, a_state(2))
    assert type(found.state.opt_state) is type(a_state(2).opt_state)


OPTIMISERS = {
    "sgd": optax.sgd(1e-2),
    "masked": optax.masked(optax.adam(1e-3), {"embed": True, "layers": {"w": False, "b": True}}),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "multi": optax.multi_transform(
        {"x": optax.adam(1e-3), "y": optax.set_to_zero()}, {"embed": "x", "layers": {"w": "y", "b": "x"}}
    ),
    "identity": optax.identity(),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_kind_of_optimiser_state_comes_back(name, tmp_path):
    state = a_state(3, opt=OPTIMISERS[name], coef={"beta": jnp.float32(0.04)}, memory={"mean": jnp.ones((4, 2))})
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(3, state, {})
    checkpoints.wait()
    found = checkpoints.restore(abstract(state))
    checkpoints.close()
    assert found is not None
    same(found.state, state)


def test_of_several_layouts_that_of_the_checkpoint_is_restored(tmp_path):
    # Two phases of a run with an optimiser of their own each: whichever was saved last comes back.
    with_adam, with_sgd = a_state(1), a_state(2, opt=optax.sgd(0.1, momentum=0.9))
    checkpoints = opened(tmp_path / "phases")
    targets = (abstract(with_adam), abstract(with_sgd))
    for index, state in ((1, with_adam), (2, with_sgd)):
        checkpoints.save(index, state, {})
        checkpoints.wait()
        restored = checkpoints.restore(*targets)
        assert restored is not None
        same(restored.state, state)
    with pytest.raises(ValueError, match="holds another state"):
        checkpoints.restore(targets[0])
    checkpoints.close()


def test_nan_payloads_infinities_and_negative_zero_survive(tmp_path):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 1], np.uint32)
    state = a_state(1, memory={"odd": jnp.asarray(bits.view(np.float32))})
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(1, state, {})
    checkpoints.wait()
    found = checkpoints.restore(abstract(state))
    checkpoints.close()
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found.state.memory["odd"]).view(np.uint32), bits)


def test_a_state_restores_onto_another_mesh(tmp_path):
    def placed(state, mesh, spec):
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 and x.shape[0] % 8 == 0 else P())),
            state,
        )

    first = placed(a_state(5), Mesh(np.array(jax.devices()), ("a",)), P("a"))
    second = placed(a_state(0), Mesh(np.array(jax.devices()).reshape(2, 4), ("b", "c")), P("c", "b"))
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(5, first, {})
    checkpoints.wait()
    found = checkpoints.restore(abstract(second))
    checkpoints.close()
    assert found is not None
    same(found.state, a_state(5))
    embed = jax.tree.leaves(found.state.params)[0]
    assert embed.shape == (16, 8) and embed.sharding.spec == P("c", "b")


def test_arrays_never_placed_follow_the_mesh_of_the_rest():
    mesh = Mesh(np.array(jax.devices()), ("a",))
    placed = jax.device_put(jnp.zeros((8, 2)), NamedSharding(mesh, P("a")))
    target = abstract({"counter": jnp.int32(0), "w": placed})
    assert target["counter"].sharding == NamedSharding(mesh, P()) and target["w"].sharding.spec == P("a")
    assert abstract({"counter": jnp.int32(0)})["counter"].sharding.device_set == {jax.devices()[0]}


@pytest.mark.parametrize("devices", [1, 8])
def test_buffers_may_be_donated_as_soon_as_save_returns(devices, tmp_path):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("a",)), P("a"))
    x = jax.device_put(jnp.arange(2**16, dtype=jnp.float32), sharding)
    overwrite = jax.jit(lambda t: jax.tree.map(lambda v: v - v - 7, t), donate_argnums=0)
    state = a_state(1, memory={"x": x})
    target, expected = abstract(state), np.arange(2**16, dtype=np.float32)
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(1, state, {})
    overwritten = overwrite(state.memory)
    jax.block_until_ready(overwritten)
    checkpoints.wait()
    found = checkpoints.restore(target)
    checkpoints.close()
    assert found is not None
    np.testing.assert_array_equal(found.state.memory["x"], expected)


def test_parameters_alone_come_back_whoever_wrote_them(saved):
    checkpoints = opened(saved, identity={"config": "other"})
    params = checkpoints.restore_params(abstract(a_state().params))
    checkpoints.close()
    same(params, a_state(2).params)


def test_a_folder_that_never_held_a_checkpoint_restores_nothing(tmp_path):
    assert restored(tmp_path / "absent") is None
    (tmp_path / "begun" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restored(tmp_path / "begun") is None


# What is not what was saved


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


DAMAGES = {
    "flip": flip,
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
    "delete": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_to_any_one_file_is_ever_restored(damage, saved, tmp_path, capfd):
    target, states = abstract(a_state()), {index: a_state(index) for index in (1, 2)}
    older, notices = 0, 0
    files = files_of(saved / "2")
    for number, name in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        DAMAGES[damage](folder / "2" / name)
        said = []
        checkpoints = opened(folder, said)
        found = checkpoints.restore(target)
        checkpoints.close()
        assert found is not None, name
        same(found.state, states[found.index])
        assert len(said) == (found.index == 1) and (folder / "2.bad").exists() == (found.index == 1), name
        older += found.index == 1
        notices += len(said)
    # Storage keeps a few files it does not need; most damage has to be noticed for this test to mean anything.
    assert older >= len(files) // 4 and notices == older
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("item", ["params", "train", "meta"])
def test_a_missing_item_or_commit_mark_falls_back_to_the_older_step(item, saved, tmp_path):
    for number, victim in enumerate((item, f"{item}/commit_success.txt", "commit_success.txt")):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        path = folder / "2" / victim
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        said = []
        found = restored(folder, said)
        assert found is not None and found.index == 1
        assert len(said) == 1 and victim in said[0] and "2.bad" in said[0]


def test_an_empty_newest_folder_and_a_left_over_temporary_one_do_not_block(saved):
    (saved / "7").mkdir()
    shutil.copytree(saved / "2", saved / "9.orbax-checkpoint-tmp")
    (saved / "7.bad").mkdir()
    said = []
    checkpoints = opened(saved, said)
    found = checkpoints.restore(abstract(a_state()))
    assert found is not None and found.index == 2
    assert (saved / "7.bad.2").exists() and "7.bad.2" in said[0] and len(said) == 1
    checkpoints.save(9, a_state(9), {})
    checkpoints.close()
    found = restored(saved)
    assert found is not None and found.index == 9


@pytest.mark.parametrize("change", ["dtype", "shape", "name"])
def test_an_item_with_other_arrays_than_its_description_is_put_aside(change, saved):
    params: dict[str, Any] = dict(a_state(2).params)
    other = {
        "dtype": {**params, "embed": params["embed"].astype(jnp.float16)},
        "shape": {**params, "embed": params["embed"][:8]},
        "name": {"embedding": params["embed"], "layers": params["layers"]},
    }[change]
    shutil.rmtree(saved / "2" / "params")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(saved / "2" / "params", other)
    said = []
    found = restored(saved, said)
    assert found is not None and found.index == 1 and len(said) == 1


def test_exchanged_items_of_two_steps_are_noticed(saved):
    shutil.rmtree(saved / "2" / "train")
    shutil.copytree(saved / "1" / "train", saved / "2" / "train")
    said = []
    found = restored(saved, said)
    assert found is not None and found.index == 1 and "train/" in said[0]


def test_no_good_checkpoint_is_an_error_now_and_after_having_been_put_aside(saved):
    for index in "12":
        flip(saved / index / "meta" / "metadata")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of them is good") as raised:
            restored(saved)
        assert raised.value.code == Exit.DATA


def test_another_identity_is_named_and_nothing_is_put_aside(saved):
    checkpoints = opened(saved, identity={"config": "b791", "jax": "0.10.2", "optax": "0.2.8"})
    target = abstract(a_state())
    with pytest.raises(ValueError, match=r"config was 4f2a and is b791; optax was absent and is 0\.2\.8"):
        checkpoints.restore(target)
    with pytest.raises(ValueError, match=r"run: optax was absent"):
        checkpoints.restore(target, accept=("config",))
    found = checkpoints.restore(target, accept=("config", "optax"))
    checkpoints.close()
    assert found is not None and found.index == 2 and sorted(os.listdir(saved)) == ["1", "2"]


def test_identity_difference_is_empty_for_equal_identities():
    assert identity_difference(IDENTITY, dict(IDENTITY)) == ""


def test_a_good_checkpoint_of_another_shape_is_refused_in_words_and_stays(saved):
    state = a_state()
    wider = dataclasses.replace(state, params={**state.params, "embed": jnp.zeros((16, 9))})
    checkpoints = opened(saved)
    with pytest.raises(ValueError, match=r"params/embed was float32\[16,8\] and is float32\[16,9\]"):
        checkpoints.restore(abstract(wider))
    checkpoints.close()
    assert sorted(os.listdir(saved)) == ["1", "2"]


# Writing


def test_older_steps_go_only_after_a_newer_one_and_milestones_stay(tmp_path):
    checkpoints = opened(tmp_path / "c", keep_last=2, keep_every=4)
    for index in range(4, 10):
        checkpoints.save(index, a_state(index), {})
        checkpoints.poll()
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "c")) == ["4", "8", "9"]


def poll_for_seconds(checkpoints, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        checkpoints.poll()
        time.sleep(0.01)


async def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_background_save_that_fails_is_raised_and_costs_no_older_checkpoint(tmp_path, monkeypatch, capfd):
    checkpoints = opened(tmp_path / "c", keep_last=1)
    checkpoints.save(1, a_state(1), {})
    checkpoints.wait()
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", no_space)
    checkpoints.save(2, a_state(2), {})
    with pytest.raises(CheckpointError, match=r"Checkpoint 2 could not be saved.*No space left on device") as raised:
        poll_for_seconds(checkpoints, 20)
    assert raised.value.code == Exit.DATA
    monkeypatch.undo()
    checkpoints.close()
    found = restored(tmp_path / "c")
    assert found is not None and found.index == 1
    same(found.state, a_state(1))
    assert capfd.readouterr().err == ""


def test_the_next_save_raises_what_the_last_one_hid(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path / "c")
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", no_space)
    checkpoints.save(1, a_state(1), {})
    with pytest.raises(CheckpointError, match="Checkpoint 1 could not be saved"):
        checkpoints.save(2, a_state(2), {})
    monkeypatch.undo()
    checkpoints.save(2, a_state(2), {})  # it was said: going on is the caller's decision
    checkpoints.close()
    found = restored(tmp_path / "c")
    assert found is not None and found.index == 2


def test_an_array_that_does_not_fit_on_the_disk_is_an_error(tmp_path):
    noise = jnp.asarray(np.random.default_rng(0).integers(0, 2**31, 2**17), jnp.int32)  # 512 KiB, incompressible
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(1, a_state(1), {})
    checkpoints.wait()
    large = a_state(2, memory={"noise": noise})
    leaf_digests(store._split(large))  # compiled, and kept on disk, before files may no longer grow
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpoints.save(2, large, {})
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.close()
    found = restored(tmp_path / "c")
    assert found is not None and found.index == 1


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be saved in .*file/c"):
        opened(tmp_path / "file" / "c").save(1, a_state(1), {})


def test_a_folder_that_cannot_be_read_is_an_error_and_not_a_start_from_scratch(saved, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    checkpoints = opened(saved)
    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "restore", denied)
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoints.restore(abstract(a_state()))
    checkpoints.close()
    assert sorted(os.listdir(saved)) == ["1", "2"]


def test_damage_that_cannot_be_put_aside_is_an_error(saved, monkeypatch):
    (saved / "2" / "commit_success.txt").unlink()

    def read_only(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", read_only)
    with pytest.raises(CheckpointError, match=r"cannot be put aside.*Read-only"):
        restored(saved)


def test_saving_the_newest_index_again_does_nothing_and_an_older_one_is_refused(tmp_path):
    checkpoints = opened(tmp_path / "c")
    checkpoints.save(4, a_state(4), {})
    checkpoints.save(4, a_state(5), {})
    with pytest.raises(ValueError, match="older than the newest, 4"):
        checkpoints.save(3, a_state(3), {})
    checkpoints.close()
    found = restored(tmp_path / "c")
    assert found is not None
    same(found.state, a_state(4))


@pytest.mark.parametrize("meta", [{"x": (1, 2)}, {1: 2}, {"x": float("nan")}, {"x": {1, 2}}], ids=str)
def test_meta_that_json_would_change_is_refused(meta, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        opened(tmp_path / "c").save(1, a_state(1), meta)


# What stays


def indices(folder):
    return sorted(int(name) for name in os.listdir(folder))


def test_the_best_stays_beside_the_last_until_another_is_better(tmp_path):
    checkpoints = opened(tmp_path / "c", keep_last=1)
    there = []
    for index, best in ((1, {1}), (2, {1}), (3, {1}), (4, {4}), (5, {4})):
        checkpoints.save(index, a_state(index), {}, best=best)
        checkpoints.wait()
        there.append(indices(tmp_path / "c"))
    checkpoints.close()
    assert there == [[1], [1, 2], [1, 3], [4], [4, 5]]


def test_a_run_that_goes_on_keeps_and_deletes_what_it_would_have(tmp_path):
    schedule = ((2, {2}), (4, {2}), (6, {2}), (8, {8}), (10, {8}))
    whole = opened(tmp_path / "whole", keep_last=2)
    for index, best in schedule:
        whole.save(index, a_state(index), {}, best=best)
    whole.close()
    for index, best in schedule:
        if index == 8:  # the process has to leave between two saves
            parts = opened(tmp_path / "parts", keep_last=2)
            parts.restore(abstract(a_state()))
            parts.save(7, a_state(7), {}, best={2}, passing=True)
            parts.close()
            assert indices(tmp_path / "parts") == [2, 4, 6, 7]
        parts = opened(tmp_path / "parts", keep_last=2)
        parts.restore(abstract(a_state()))
        parts.save(index, a_state(index), {}, best=best)
        parts.close()
    assert indices(tmp_path / "parts") == indices(tmp_path / "whole") == [8, 10]


def test_what_a_killed_process_had_no_time_to_delete_goes_when_the_newest_has_proved_good(tmp_path):
    folder = tmp_path / "c"
    checkpoints = opened(folder, keep_last=1)
    for index in (1, 2):
        checkpoints.save(index, a_state(index), {})
        checkpoints.wait()
        shutil.copytree(folder / str(index), tmp_path / "kept" / str(index))
    checkpoints.close()
    assert indices(folder) == [2]
    shutil.copytree(tmp_path / "kept" / "1", folder / "1")
    flip(folder / "2" / "meta" / "metadata")
    found = restored(folder, [], keep_last=1)
    assert found is not None and found.index == 1  # not deleted before the newer one has been read
    shutil.rmtree(folder / "2.bad")
    shutil.copytree(tmp_path / "kept" / "2", folder / "2")
    restored(folder, keep_last=1)
    assert indices(folder) == [2]


# Only looking


def stamps(folder):
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_looking_changes_nothing_whatever_state_the_folder_is_in(saved):
    (saved / "7").mkdir()
    shutil.copytree(saved / "2", saved / "9.orbax-checkpoint-tmp")
    flip(saved / "2" / "meta" / "metadata")
    before, said = stamps(saved), []
    checkpoints = opened(saved, said, read_only=True, keep_last=1)
    found = checkpoints.restore(abstract(a_state()))
    assert found is not None and found.index == 1
    same(found.state, a_state(1))
    assert len(said) == 2 and "Checkpoint 7 is damaged" in said[0] and "next older one" in said[1]
    with pytest.raises(ValueError, match="was opened to be read"):
        checkpoints.save(10, a_state(10), {})
    checkpoints.close()
    assert stamps(saved) == before


def test_one_checkpoint_may_be_asked_for_by_its_index(saved):
    (saved / "7").mkdir()
    checkpoints = opened(saved, read_only=True)
    assert list(checkpoints.notes()) == [2, 1] and checkpoints.notes()[1] == {"attempt": 1, "metric": 0.1}
    found = checkpoints.restore(abstract(a_state()), index=1)
    assert found is not None and found.index == 1
    same(found.state, a_state(1))
    for index in (3, 7):
        with pytest.raises(CheckpointError, match=f"Checkpoint {index} in .* is damaged: commit_success.txt"):
            checkpoints.restore(abstract(a_state()), index=index)
    flip(saved / "1" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match=r"Checkpoint 1 in .* is damaged"):
        checkpoints.restore(abstract(a_state()), index=1)
    assert list(checkpoints.notes()) == [2]
    checkpoints.close()
