"""The twin that fits in one file learns, and computes what the library computes."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import minimal
from grpo_jax import models, objectives, train
from grpo_jax.sharding import global_norm
from grpo_jax.types import Prompts, Reward, Rollouts
from grpo_jax.updates import Gradient, Optimizer

CONFIG = minimal.Config(group=4, beta=0.1, clip=0.05)
MODEL = models.ModelConfig(
    vocab=len(minimal.ALPHABET),
    width=CONFIG.width,
    layers=CONFIG.layers,
    heads=CONFIG.heads,
    kv_heads=CONFIG.heads,
    head_width=CONFIG.width // CONFIG.heads,
    hidden=CONFIG.hidden,
    positions=CONFIG.prompt + CONFIG.answer,
    rope_theta=CONFIG.rope_theta,
)
GRADIENT = Gradient(
    model=MODEL,
    recipe=objectives.grpo(beta=CONFIG.beta, clip=CONFIG.clip),
    optimizer=Optimizer(learning_rate=2e-3, b2=0.95, eps=1e-5, clip_norm=1.0),
    group_size=CONFIG.group,
    updates=1,
)
RUN = minimal.Config(group=16, steps=25)
QUESTIONS = minimal.QUESTIONS[:6]
ROWS = len(QUESTIONS) * CONFIG.group


def start():
    """Initial parameters with a larger head: a policy with opinions, and with gradients that get clipped."""
    params = minimal.init(jax.random.key(1), CONFIG)
    return {**params, "head": 25 * params["head"]}


def nearby(params, seed):
    """Another policy, near enough for ratios on both sides of the clip interval."""
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.01 * jax.random.normal(next(keys), x.shape, x.dtype), params)


def sampled():
    """Answers of every length, some never stopped, and rewards, tied in one group: tokens, length, stopped, outcome."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, minimal.STOP, (ROWS, CONFIG.answer)).astype(np.int32)
    length = rng.integers(1, CONFIG.answer + 1, ROWS).astype(np.int32)
    stopped = rng.random(ROWS) < 0.7
    tokens[np.arange(ROWS)[stopped], length[stopped] - 1] = minimal.STOP
    length[~stopped] = CONFIG.answer
    outcome = rng.integers(0, 2, ROWS).astype(np.float32)
    outcome[: CONFIG.group] = 1.0
    return tokens, length, stopped, outcome


@pytest.fixture(scope="module", name="both")
def one_update_of_each():
    """Loss, gradient and parameters after one and two updates of both on the same parameters, tokens and rewards."""
    params = start()
    old, reference = nearby(params, 2), nearby(params, 3)
    tokens, length, stopped, outcome = sampled()
    mask = np.arange(CONFIG.answer)[None, :] < length[:, None]

    prompts = minimal.encode([question for question in QUESTIONS for _ in range(CONFIG.group)])
    logp_old, logp_ref = (minimal.logprobs(policy, prompts, tokens, CONFIG) for policy in (old, reference))
    batch = minimal.Batch(
        prompts,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        minimal.advantages(jnp.asarray(outcome), CONFIG.group),
        logp_old,
        logp_ref,
    )
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        once, state, value, gradient = minimal.update(params, minimal.OPTIMIZER.init(params), batch, CONFIG)
        twice, *_ = minimal.update(once, state, batch, CONFIG)
    twin = {"loss": value, "gradient": gradient, "params": once, "advantage": batch.advantage, "second params": twice}
    twin["ratio"] = jnp.exp(minimal.logprobs(params, prompts, tokens, CONFIG) - logp_old)[mask]

    count = jnp.arange(len(QUESTIONS), dtype=jnp.int32)
    rollouts = Rollouts(
        prompts=Prompts(
            tokens=minimal.encode(QUESTIONS), length=jnp.full_like(count, CONFIG.prompt), draw=count, row=count
        ),
        prompt=jnp.repeat(count, CONFIG.group),
        sample=jnp.tile(jnp.arange(CONFIG.group, dtype=jnp.int32), len(QUESTIONS)),
        tokens=jnp.asarray(tokens),
        length=jnp.asarray(length),
        stopped=jnp.asarray(stopped),
        mask=jnp.asarray(mask),
        logp=jnp.zeros_like(logp_old),
        logp_full=jnp.zeros_like(logp_old),
        version=jnp.zeros(ROWS, jnp.int32),
    )
    return twin, library_update(params, old, reference, rollouts, jnp.asarray(outcome))


def library_update(params, old, reference, rollouts, outcome):
    """The same with the phases of the library."""

    @jax.jit
    def prepare(params, old, reference, rollouts, outcome):
        logp_old = models.logprobs(old, MODEL, rollouts, temperature=1.0).logp
        rollouts = rollouts.replace(logp=logp_old, logp_full=logp_old)
        reward = Reward(outcome=outcome, valid=jnp.ones(ROWS, bool))
        how = {"model": MODEL, "temperature": 1.0, "group_size": CONFIG.group}
        seen = train.look_rows(None, reference, rollouts, want=("logp_ref",), **how)
        collected = train.collect(rollouts, reward, seen, recipe=GRADIENT.recipe)
        labels, memory = train.label(collected, {}, GRADIENT.recipe)
        advantage, _ = train.advantage(collected, labels, memory, GRADIENT.recipe)
        batch = train.make_batch(collected, labels, advantage, GRADIENT.recipe)

        def loss(params):
            return objectives.loss(
                GRADIENT.recipe.parts, models.logprobs(params, MODEL, rollouts, temperature=1.0), batch
            )

        return batch, jax.grad(loss)(params)

    @jax.jit
    def update(state, batch):
        return train.update(state, batch, GRADIENT, key=jax.random.key(0))

    batch, gradient = prepare(params, old, reference, rollouts, outcome)
    once, metrics = update(train.start(params, GRADIENT), batch)
    twice, _ = update(once, batch)
    parameters = {"params": once.params, "second params": twice.params}
    return {"loss": metrics["loss"], "gradient": gradient, "advantage": batch.advantage[:, 0], **parameters}


def test_it_has_the_parameters_of_the_library():
    params = minimal.init(jax.random.key(1), CONFIG)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), dict(models.abstract(MODEL)))


def test_the_batch_reaches_every_branch_of_the_objective(both):
    twin, _ = both
    assert (twin["ratio"] < 1 - CONFIG.clip).any()
    assert (twin["ratio"] > 1 + CONFIG.clip).any()
    assert (jnp.abs(twin["ratio"] - 1) < CONFIG.clip).any()
    assert float(global_norm(twin["gradient"])) > 1.0  # so that it is clipped
    assert (twin["advantage"][: CONFIG.group] == 0).all()
    assert (jnp.abs(twin["advantage"][CONFIG.group :]) > 0.1).any()


@pytest.mark.parametrize("quantity", ["advantage", "loss", "gradient", "params", "second params"])
def test_one_update_equals_that_of_the_library(both, quantity):
    twin, library = both
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(twin[quantity]))
    assert size > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * min(size, 1.0)),
        twin[quantity],
        library[quantity],
    )


def test_the_update_moves_every_parameter(both):
    twin, _ = both
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), twin["params"], start())
    assert min(jax.tree.leaves(moved)) > 1e-4  # two orders above the tolerance of the comparison


def test_the_reward_by_hand():
    assert minimal.reward("3+4=", "7;") == 1.0
    assert [minimal.reward("3+4=", answer) for answer in ("7", "8;", ";", "07;", "")] == [0.0] * 5


def test_answers_end_with_their_first_stop():
    prompts = minimal.encode([question for question in minimal.QUESTIONS for _ in range(RUN.group)])
    tokens, mask = minimal.sample(minimal.init(jax.random.key(1), RUN), prompts, jax.random.key(2), RUN)
    whole = minimal.decode(tokens, jnp.ones_like(mask))
    assert {text.count(";") for text in whole} >= {0, 1, 2}
    assert minimal.decode(tokens, mask) == [text[: text.index(";") + 1] if ";" in text else text for text in whole]


@pytest.mark.slow
def test_the_reward_rises():
    with jax.numpy_dtype_promotion("standard"):
        rewards = minimal.main(RUN)
    assert np.mean(rewards[:3]) < 0.05
    assert np.mean(rewards[-3:]) > 0.25


def test_it_stands_alone_and_fits_in_200_lines():
    source = Path(minimal.__file__).read_text()
    assert len(source.splitlines()) <= 200
    imported = [
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert {name.split(".")[0] for name in imported} == {"jax", "optax", "typing"}
