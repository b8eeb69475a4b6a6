"""One program for one description, and every trace is counted."""

import importlib.util
import linecache
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from grpo_jax import compiled as module
from grpo_jax.compiled import compiled, forget, keep_programs, make_room, traces
from grpo_jax.objectives import describe
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Array


def power(x: Array, *, exponent: int = 2) -> Array:
    return x**exponent


def grown(state: Array, by: Array, *, settings, mesh: Mesh | None = None) -> tuple[Array, Array]:
    del mesh
    return state + settings(by), by


def once(by: Array, *, mesh: Mesh | None = None) -> Array:
    del mesh
    return by


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch):
    monkeypatch.setattr(module, "_COMPILED", {})
    monkeypatch.setattr(module, "TRACES", type(module.TRACES)())


def test_equal_descriptions_share_one_object():
    first = compiled(grown, settings=partial(power, exponent=3))
    assert compiled(grown, settings=partial(power, exponent=3)) is first
    assert compiled(grown, settings=partial(partial(power, exponent=7), exponent=3)) is first
    assert compiled(once) is compiled(once)


def test_a_default_that_is_bound_changes_nothing():
    assert compiled(grown, settings=power) is compiled(grown, settings=partial(power, exponent=2))


def test_other_settings_meshes_donations_and_functions_have_their_own():
    mesh = make_mesh({"data": 8})
    usual = compiled(grown, settings=power)
    others = [
        compiled(grown, settings=partial(power, exponent=3)),
        compiled(grown, settings=power, mesh=mesh),
        compiled(grown, settings=power, donate=("state",)),
        compiled(once),
    ]
    assert len({id(program) for program in [usual, *others]}) == 5
    assert compiled(grown, settings=power, mesh=make_mesh({"data": 8})) is others[1]


def test_data_shares_a_trace_and_shapes_do_not():
    program = compiled(grown, settings=power)
    for seed in range(3):
        total, _ = program(jnp.float32(1), jnp.float32(seed))
        assert float(total) == 1 + seed**2
    assert traces() == {"grown": 1}
    program(jnp.ones(3), jnp.ones(3))
    assert traces() == {"grown": 2}


def test_traces_are_told_as_a_copy():
    compiled(once)(jnp.float32(1))
    traces()["once"] = 9
    assert traces() == {"once": 1}


def test_forgotten_programs_are_made_anew():
    program = compiled(once)
    program(jnp.float32(1))
    forget()
    assert traces() == {}
    assert compiled(once) is not program


def test_donated_arguments_are_used_up_and_others_are_not():
    program = compiled(grown, settings=power, donate=("state",))
    state, by = jnp.ones(3), jnp.ones(3)
    program(state, by)
    assert state.is_deleted() and not by.is_deleted()


def test_settings_that_cannot_be_described_are_refused():
    with pytest.raises(ValueError, match=r"lambda.*partial"):
        compiled(grown, settings=lambda x: x)


def test_a_function_edited_under_its_name_is_another_program(tmp_path):
    def loaded(text: str) -> Callable[..., jax.Array]:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        linecache.checkcache()
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.power

    first = compiled(grown, settings=loaded("def power(x):\n    return x\n"))
    edited = loaded("def power(x):\n    return -1.0 * x  # and longer\n")
    assert describe(edited) == "mine.power"
    assert compiled(grown, settings=edited) is not first


def test_programs_are_kept_where_the_environment_says(monkeypatch, tmp_path):
    folder, cache = "jax_compilation_cache_dir", "jax_persistent_cache_min_"
    before = {
        name: getattr(jax.config, name) for name in (folder, f"{cache}compile_time_secs", f"{cache}entry_size_bytes")
    }
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
        assert keep_programs() == tmp_path / "programs"
        assert getattr(jax.config, folder) == str(tmp_path / "programs")
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert keep_programs() == tmp_path / "grpo_jax"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_programs_are_dropped_when_a_share_of_the_maps_is_used_and_no_earlier(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(module, "MOST_MAPS", tmp_path / "most")
    kept = compiled(power)
    assert not make_room()  # no such files: no such limit
    (tmp_path / "most").write_text("100\n")
    (tmp_path / "maps").write_bytes(b"7f00-7f01 r-xp\n" * 39)
    assert not make_room(0.4) and compiled(power) is kept
    (tmp_path / "maps").write_bytes(b"7f00-7f01 r-xp\n" * 40)
    assert make_room(0.4) and compiled(power) is not kept


def test_dropped_programs_give_their_memory_back():
    if not module.MAPS.exists():
        return

    def mapped() -> int:
        return module.MAPS.read_bytes().count(b"\n")

    before = mapped()
    for exponent in range(2, 22):
        jax.block_until_ready(compiled(grown, settings=partial(power, exponent=exponent))(jnp.ones(4), jnp.ones(4)))
    full = mapped()
    assert full > before + 20
    assert make_room(0.0) and mapped() < full - 20
