"""Loaded models say what the reference implementation says: logits, packed rows, gradients, greedy texts, saved files.

Nothing here knows how a family computes: expected numbers are those of another program (`reference.py`).
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.sampling import Sampling, generate
from grpo_jax.types import Array, Params, Prompts, Rollouts
from tests.parity import harness
from tests.parity.cases import CASES, LENGTHS, NEW_TOKENS, PROMPTS

LOGITS, GRADIENTS = 1e-4, 1e-3
PACKED = ((0, 2), (3, 1))  # rows that share one: 12 + 7 and 10 + 9 tokens
QUICK = [name for name, case in CASES.items() if case.quick]
DECODED = [name for name in QUICK if name.startswith(("qwen2-", "gemma3", "qwen3moe", "mistral"))]
MIXTURES = [name for name in CASES if "moe" in name or "mixtral" in name]

every_case = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if c.quick else pytest.mark.slow, id=n) for n, c in CASES.items()]
)


@functools.cache
def loaded(name: str) -> tuple[Params, ModelConfig]:
    """A model as this library reads it, in float32."""
    return models.load(harness.made() / name / "model", param_dtype="float32")


def config_for(name: str, longest: int) -> ModelConfig:
    """The config for sequences of up to so many tokens, which decides where rotations depend on that."""
    config = loaded(name)[1]
    if not CASES[name].varies or config.rope_scaling is None:
        return config
    return dataclasses.replace(config, rope_scaling=dataclasses.replace(config.rope_scaling, length=longest))


def rows(name: str) -> tuple[Array, Array]:
    """Tokens i32[4, 12] and which of them are no padding."""
    tokens = jnp.asarray(harness.expected(name)["tokens"], jnp.int32)
    return tokens, jnp.arange(tokens.shape[1])[None] < jnp.asarray(LENGTHS)[:, None]


def packed(tokens: np.ndarray) -> tuple[Array, Array]:
    """Two rows with two sequences each, and padding behind: tokens, segment i32[2, 20]."""
    inputs, segment = np.zeros((2, 20), np.int32), np.full((2, 20), -1, np.int32)
    for place, (first, second) in enumerate(PACKED):
        cut, end = LENGTHS[first], LENGTHS[first] + LENGTHS[second]
        inputs[place, :cut], inputs[place, cut:end] = tokens[first, :cut], tokens[second, : LENGTHS[second]]
        segment[place, :cut], segment[place, cut:end] = 0, 1
    return jnp.asarray(inputs), jnp.asarray(segment)


def prompts(name: str) -> Prompts:
    """The two prompts, of 5 and 3 tokens."""
    index, size = jnp.arange(2, dtype=jnp.int32), jnp.asarray([PROMPTS[0], PROMPTS[2]], jnp.int32)
    tokens = rows(name)[0][::2, : max(PROMPTS)]
    tokens = jnp.where(jnp.arange(max(PROMPTS))[None] < size[:, None], tokens, 0)
    return Prompts(tokens=tokens, length=size, draw=index, row=index)


def rollouts(name: str) -> Rollouts:
    """What follows the prompts, as the completions of a step."""
    tokens, _ = rows(name)
    length = jnp.asarray(LENGTHS, jnp.int32) - jnp.asarray(PROMPTS, jnp.int32)
    width = max(a - b for a, b in zip(LENGTHS, PROMPTS, strict=True))
    behind = jnp.stack([jnp.pad(tokens[r, p:], (0, width))[:width] for r, p in enumerate(PROMPTS)])
    mask = jnp.arange(width)[None] < length[:, None]
    zero = jnp.zeros(mask.shape)
    index = jnp.arange(4, dtype=jnp.int32)
    return Rollouts(
        prompts=prompts(name),
        prompt=index // 2,
        sample=index % 2,
        tokens=jnp.where(mask, behind, 0),
        length=length,
        stopped=jnp.ones(4, bool),
        mask=mask,
        logp=zero,
        logp_full=zero,
        version=jnp.zeros(4, jnp.int32),
    )


def said(params: Params, config: ModelConfig, batch: tuple, given: Rollouts) -> dict:
    """Everything that one compilation can tell: logits, those of packed rows, the loss and its gradient."""
    tokens, valid, inputs, segment = batch

    def loss(params: Params) -> Array:
        logp = models.logprobs(params, config, given, temperature=1.0).logp
        return -jnp.sum(jnp.where(given.mask, logp, 0)) / jnp.sum(given.mask, dtype=logp.dtype)

    value, gradient = jax.value_and_grad(loss)(params)
    return {
        "padded": models.forward(params, config, tokens, valid),
        "packed": models.forward(params, config, inputs, segment >= 0, segment),
        "loss": value,
        "gradient": gradient,
    }


@functools.cache
def told(name: str) -> dict:
    """`said` of a case."""
    params, config = loaded(name)[0], config_for(name, 20)
    tokens, valid = rows(name)
    batch = (tokens, valid, *packed(np.asarray(tokens)))
    return jax.device_get(jax.jit(said, static_argnums=1)(params, config, batch, rollouts(name)))


def check_gradient(name: str, gradient: Params) -> None:
    """Each parameter's, relative to the largest of its entries; that of the reference lies in a folder like weights."""
    wanted = models.flat(models.load(harness.made() / name / "gradient", param_dtype="float32")[0])
    found = models.flat(gradient)
    assert found.keys() == wanted.keys()
    wrong = {}
    for path, value in wanted.items():
        size = float(np.max(np.abs(value)))
        error = float(np.max(np.abs(np.asarray(found[path]) - np.asarray(value))))
        # The weight of a single expert is 1 whatever its router says, which then learns nothing.
        if not (size > 1e-6 or path.endswith("router")) or not error < GRADIENTS * max(size, 1e-3):
            wrong[path] = error / max(size, 1e-30)
    assert wrong == {}


@every_case
def test_logits_and_gradients_are_those_of_the_reference(name: str):
    expected = harness.expected(name)
    if CASES[name].varies:
        check_alone(name)
        return
    found = told(name)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found["padded"][row, :length], expected["padded"][row, :length], atol=LOGITS, rtol=0)
    for place, (first, second) in enumerate(PACKED):
        cut, size = LENGTHS[first], LENGTHS[second]
        np.testing.assert_allclose(found["packed"][place, :cut], expected["alone"][first, :cut], atol=LOGITS, rtol=0)
        np.testing.assert_allclose(
            found["packed"][place, cut : cut + size], expected["alone"][second, :size], atol=LOGITS, rtol=0
        )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    check_gradient(name, found["gradient"])


def check_alone(name: str) -> None:
    """Rows one by one, each with the frequencies of its length, where these depend on it."""
    for row, length in enumerate(LENGTHS):
        tokens = rows(name)[0][row : row + 1, :length]
        logits = models.forward(loaded(name)[0], config_for(name, length), tokens, jnp.ones((1, length), bool))
        np.testing.assert_allclose(
            logits[0], harness.expected(name)["alone"][row, :length], atol=LOGITS, rtol=0, err_msg=f"row {row}"
        )


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DECODED else pytest.mark.slow, id=n) for n in CASES])
def test_greedy_completions_are_those_of_the_reference(name: str):
    params, config = loaded(name)[0], config_for(name, max(PROMPTS) + NEW_TOKENS)
    sampling = Sampling(max_tokens=NEW_TOKENS, temperature=0.0, stop=())
    draw = jax.jit(functools.partial(generate, config=config, sampling=sampling, group_size=1))
    found = draw(params, prompts=prompts(name), key=jax.random.key(0))
    expected = harness.expected(name)
    if not CASES[name].varies:  # there the reference changes its frequencies in the middle of a text
        np.testing.assert_array_equal(found.tokens, expected["greedy"])
        np.testing.assert_allclose(found.logp_full, expected["greedy_logp"], atol=LOGITS, rtol=0)
    again = models.logprobs(params, config, found, temperature=1.0).logp
    np.testing.assert_allclose(again, found.logp_full, atol=2e-5, rtol=0)


def save_again(name: str, folder: Path) -> Path:
    """The folder that this library writes of what it has read, in the dtype of the files."""
    params, config = models.load(harness.made() / name / "model", param_dtype=CASES[name].dtype)
    models.save(folder / name, params, config)
    again, same = models.load(folder / name, param_dtype=CASES[name].dtype)
    assert same == config
    pairs = jax.tree.map(lambda a, b: bool((a == b).all()) and a.dtype == b.dtype, params, again)
    assert all(jax.tree.leaves(pairs)), pairs
    return folder / name


def check_saved(names: list[str], folder: Path) -> None:
    answers = harness.answers({name: save_again(name, folder) for name in names})
    for name, answer in answers.items():
        expected = harness.expected(name)
        assert list(answer["complaints"]) == [], name
        if not CASES[name].varies:
            np.testing.assert_array_equal(answer["greedy"], expected["greedy"])
        for row, length in enumerate(LENGTHS):
            np.testing.assert_allclose(
                answer["padded"][row, :length], expected["padded"][row, :length], atol=LOGITS, rtol=0, err_msg=name
            )


def test_the_reference_loads_what_was_saved_and_says_the_same(tmp_path: Path):
    check_saved(QUICK, tmp_path)


@pytest.mark.slow
def test_the_reference_loads_every_saved_model_and_says_the_same(tmp_path: Path):
    check_saved([name for name in CASES if name not in QUICK], tmp_path)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if CASES[n].quick else pytest.mark.slow, id=n) for n in MIXTURES]
)
def test_all_experts_computed_for_every_token_say_the_same_as_the_chosen_ones(name: str):
    params, config = loaded(name)
    assert config.expert_path == "grouped"
    dense = jax.jit(models.forward, static_argnums=1)(
        params, dataclasses.replace(config, expert_path="dense"), *rows(name)
    )
    for row, length in enumerate(LENGTHS):
        wanted = harness.expected(name)["padded"][row, :length]
        np.testing.assert_allclose(dense[row, :length], wanted, atol=LOGITS, rtol=0)
