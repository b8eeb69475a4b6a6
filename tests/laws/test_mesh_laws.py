"""What a mesh may not change, and what it may not send: eight devices compute the step of one."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax import models
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import RULES, make_mesh, place, place_rows, replicate
from grpo_jax.train import place_state
from grpo_jax.types import Array, Params, Prompts, Rollouts, TrainState
from tests.laws import tiny
from tests.laws.tiny import ASKED, MODEL, STOP, P

MESHES = {
    "1x8": {"data": 1, "fsdp": 8},
    "8x1": {"data": 8, "fsdp": 1},
    "2x4": {"data": 2, "fsdp": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}
PARAMS = tiny.policy()
REFERENCE = tiny.nearby(PARAMS)
ROWS = (tiny.rows(), tiny.rewards())


# The update


@pytest.fixture(scope="module", name="alone")
def updates_on_one_device() -> tiny.Results:
    return jax.device_get(tiny.program()(PARAMS, REFERENCE, *ROWS))


def check_updates(alone: tiny.Results, shape: str, names: tuple[str, ...]) -> None:
    mesh = make_mesh(MESHES[shape])
    policies = place((PARAMS, REFERENCE), mesh, (models.axes(MODEL),) * 2)
    results = tiny.program(mesh=mesh, names=names)(*policies, *place_rows(ROWS, mesh))
    tiny.assert_same(PARAMS, {name: alone[name] for name in names}, jax.device_get(results))
    for name, (params, _) in results.items():
        assert laid_out_alike(params, policies[0]), name


@pytest.mark.slow
def test_every_update_is_that_of_one_device(alone):
    check_updates(alone, "2x2x2", (*tiny.SPINE, "grpo_by_category"))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1x8", "8x1", "2x4"])
def test_on_other_meshes_an_update_with_a_reference_and_one_without_are_those_of_one_device(alone, shape):
    check_updates(alone, shape, ("grpo", "dapo"))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1x8", "8x1", "2x4"])
def test_on_other_meshes_every_update_is_that_of_one_device(alone, shape):
    check_updates(alone, shape, tiny.SPINE)


def laid_out_alike(a: object, b: object) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.sharding.is_equivalent_to(y.sharding, x.ndim) for x, y in pairs)


@pytest.mark.slow
def test_rows_are_compared_across_shards_and_minibatches():
    """The advantages of a step on a mesh with two minibatches are those of its categories over the whole batch."""
    mesh = make_mesh(MESHES["2x4"])
    change = dataclasses.replace(tiny.STEP.gradient, recipe=tiny.RECIPES["grpo_by_category"])
    step = partial(tiny.whole_step, change=change, mesh=mesh)
    state, prompts = place_state(tiny.begin(), tiny.MODEL, mesh), place_rows(ASKED, mesh)
    reference = place(REFERENCE, mesh, models.axes(MODEL))
    jitted = jax.jit(step, compiler_options=tiny.QUICK)
    _, _, batch = jax.device_get(jitted(state, prompts, np.int32(5), reference=reference))
    category = tiny.CATEGORIES[batch.rollouts.prompt]
    reward, valid = batch.reward.outcome.astype(np.float64), batch.reward.valid
    expected = np.zeros(len(reward))
    for code in range(3):
        rows = valid & (category == code)
        shards = {int(p) for p in batch.rollouts.prompt[rows]}  # eight shards hold a prompt each
        assert len(shards) > 1 and np.ptp(reward[rows]) > 0
        expected[rows] = (reward[rows] - reward[rows].mean()) / (reward[rows].std(ddof=1) + 1e-6)
    np.testing.assert_allclose(batch.advantage, np.where(batch.rollouts.mask, expected[:, None], 0), atol=1e-5)


# The step


STEPS = 2


def steps(mesh: Mesh | None) -> tuple[TrainState, list]:
    """The state after the steps, and (batch, metrics) of each."""
    state, prompts, reference = tiny.begin(), ASKED, REFERENCE
    if mesh is not None:
        state, prompts = place_state(state, tiny.MODEL, mesh), place_rows(prompts, mesh)
        reference = place(reference, mesh, models.axes(MODEL))
    learn = tiny.step_program(mesh)
    seen = []
    for _ in range(STEPS):
        state, metrics, batch = learn(state, prompts, np.int32(5), reference=reference)
        seen.append(jax.device_get((batch, metrics)))
    return state, seen


@pytest.fixture(scope="module", name="steps_alone")
def steps_on_one_device():
    state, seen = steps(None)
    return jax.device_get(state), seen


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["2x2x2", "1x8", "8x1", "2x4"])
def test_whole_steps_are_those_of_one_device(steps_alone, shape):
    mesh = make_mesh(MESHES[shape])
    state, seen = steps(mesh)
    for (batch, metrics), (batch_alone, metrics_alone) in zip(seen, steps_alone[1], strict=True):
        np.testing.assert_array_equal(batch.rollouts.tokens, batch_alone.rollouts.tokens)
        np.testing.assert_allclose(batch.rollouts.logp_full, batch_alone.rollouts.logp_full, rtol=0, atol=2e-5)
        np.testing.assert_allclose(batch.advantage, batch_alone.advantage, rtol=0, atol=1e-5)
        assert metrics.keys() == metrics_alone.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(value, metrics_alone[name], rtol=1e-3, atol=2e-5, err_msg=name)
    results, alone = ({"": (s.params, {})} for s in (jax.device_get(state), steps_alone[0]))
    assert tiny.moves(PARAMS, alone)[""] > 1e-2
    tiny.assert_same(PARAMS, alone, results, rtol=2e-4)
    # As what went in: the next step is no other program.
    assert laid_out_alike(state, place_state(state, tiny.MODEL, mesh))


def test_the_sampler_and_the_trainer_agree_while_the_policy_moves(steps_alone):
    (first, metrics), (second, later) = steps_alone[1]
    assert max(m["logp_gap/max"] for m in (metrics, later)) < 1e-4
    assert np.abs(first.rollouts.logp_full - second.rollouts.logp_full).max() > 1e-3


# What is sent


WIDE = models.ModelConfig(
    vocab=40, width=64, layers=2, heads=4, kv_heads=2, head_width=16, hidden=128, rope_theta=100.0
)
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
CALLED = re.compile(
    r"(?:body|condition|calls|to_apply)=%?([\w.-]+)|(?:branch_computations|called_computations)=\{(.*?)\}"
)
SAMPLES = 2


def computations(text: str) -> dict[str, list[str]]:
    """Name -> instructions of every computation of a compiled module."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            lines = found.setdefault(head[1], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def called(lines: list[str]) -> Iterator[str]:
    for line in lines:
        for one, several in CALLED.findall(line):
            yield from [one] if one else [name.strip(" %") for name in several.split(",")]


def sent_in_loops(text: str) -> list[tuple[str, int]]:
    """(collective, number of elements it results in) of all that happens again and again: what while loops reach."""
    table = computations(text)
    open_names = [name for lines in table.values() for name in called([x for x in lines if " while(" in x])]
    assert open_names, "no loop was found: the text is not as this parser expects it"
    reached: set[str] = set()
    while open_names:
        name = open_names.pop()
        if name not in reached:
            reached.add(name)
            open_names.extend(called(table[name]))
    found = [match for name in sorted(reached) for line in table[name] for match in COLLECTIVE.findall(line)]
    return [(kind, sum(elements(shape) for shape in re.findall(r"\w+\[([\d,]*)\]", shapes))) for shapes, kind in found]


def elements(shape: str) -> int:
    return int(np.prod([int(size) for size in shape.split(",") if size], dtype=np.int64))


def sampling_text(mesh: Mesh) -> str:
    """What is compiled to sample on `mesh`."""

    def sample(params: Params, prompts: Prompts, key: Array) -> Rollouts:
        sampling = Sampling(max_tokens=6, stop=(STOP,))
        return generate(params, WIDE, prompts, sampling, key, mesh, group_size=SAMPLES)

    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), models.abstract(WIDE))
    params = place(params, mesh, models.axes(WIDE))
    lowered = jax.jit(sample).lower(params, place_rows(ASKED, mesh), replicate(jax.random.key(0), mesh))
    return lowered.compile(compiler_options=tiny.QUICK).as_text() or ""


def test_with_fsdp_a_decoded_token_sends_nothing_but_whether_all_have_stopped():
    assert sent_in_loops(sampling_text(make_mesh(MESHES["1x8"]))) == [("all-reduce", 1)]


def test_with_tensor_a_decoded_token_sends_activations_of_its_rows_and_no_weight():
    mesh = make_mesh(MESHES["2x2x2"])
    rows = P * SAMPLES // (mesh.shape["data"] * mesh.shape["fsdp"])
    sent = sent_in_loops(sampling_text(mesh))
    assert {"all-reduce"} <= {kind for kind, _ in sent}
    assert max(size for _, size in sent) <= rows * max(WIDE.width, WIDE.vocab)
    smallest = WIDE.width * WIDE.kv_heads * WIDE.head_width // mesh.shape["tensor"]
    assert rows * max(WIDE.width, WIDE.vocab) < smallest


@pytest.mark.parametrize("shape", ["1x8", pytest.param("2x2x2", marks=pytest.mark.slow)])
def test_the_rules_of_training_would_send_more(monkeypatch, shape):
    mesh = make_mesh(MESHES[shape])
    monkeypatch.setattr(sys.modules["grpo_jax.sampling.generate"], "ROLLOUT_RULES", RULES)
    rows = P * SAMPLES // (mesh.shape["data"] * mesh.shape["fsdp"])
    assert max(size for _, size in sent_in_loops(sampling_text(mesh))) >= rows * max(WIDE.width, WIDE.vocab)


def test_a_weight_that_is_gathered_in_a_loop_is_seen():
    mesh = make_mesh(MESHES["1x8"])
    split, rows = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec("fsdp"))
    weight = jax.device_put(jnp.ones((64, 64)), split)

    @jax.jit
    def gathering(weight: Array, x: Array) -> Array:
        def body(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            weight, x = carry
            whole = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec()))
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), rows)
            return jax.lax.with_sharding_constraint(0.5 * weight, split), x

        return jax.lax.fori_loop(0, 5, body, (weight, x))[1]

    text = gathering.lower(weight, jax.device_put(jnp.ones((8, 64)), rows)).compile().as_text()
    assert text is not None and ("all-gather", 64 * 64) in sent_in_loops(text)
