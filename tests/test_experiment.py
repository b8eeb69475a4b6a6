"""An experiment refuses what cannot be run before anything runs, and says all of itself as text."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from grpo_jax.data import Chain, Jsonl
from grpo_jax.experiment import (
    Evaluation,
    Experiment,
    Saving,
    Train,
    WarmStart,
    data_digest,
    settings,
    step_settings,
    warm_settings,
)
from grpo_jax.objectives import dapo, grpo
from grpo_jax.train import IMITATION
from tests.system.small_run import PLAIN
from tests.system.small_text import digits_in_text


def changed(**changes: Any) -> Experiment:
    return dataclasses.replace(PLAIN, **changes)


def train(**changes: Any) -> dict[str, Any]:
    return {"train": dataclasses.replace(PLAIN.train, **changes)}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"evaluation": dataclasses.replace(PLAIN.evaluation, **changes)}


BYTES = Jsonl(
    str(Path(__file__).parent.parent / "experiments" / "data" / "arithmetic.jsonl"),
    prompt_width=200,
    completion_width=100,
)
REFUSED: list[tuple[Mapping[str, Any], str]] = [
    ({"name": "../elsewhere"}, "name: got '../elsewhere', allowed are 1 to 80 letters"),
    ({"name": ".."}, "name: got '..'"),
    ({"name": ""}, "name: got ''"),
    ({"name": "x" * 81}, "1 to 80"),
    ({"seed": -1}, "seed: got -1, allowed 0 to 2^31 - 1"),
    ({"seed": 2**31}, "seed: got 2147483648"),
    ({"model": dataclasses.replace(PLAIN.model, vocab=19)}, "model.vocab: got 19, allowed >= 20"),
    ({"sampling": PLAIN.sampling.replace(max_tokens=9)}, "sampling.max_tokens: got 9, allowed up to 8"),
    ({"sampling": PLAIN.sampling.replace(temperature=0.0)}, "sampling.temperature: got 0.0, allowed > 0"),
    ({"text_rewards": {}}, "text_rewards: got none, allowed at least one"),
    ({"text_rewards": {"digits": (digits_in_text, 1.0)}}, "text_rewards: got digits, allowed with a warm start"),
    (train(steps=-1), "train.steps: got -1, allowed >= 0"),
    (train(prompts=0), "train.prompts: got 0, allowed >= 1"),
    (train(prompts=7), "train.prompts: got 7, which 2 minibatches x 1 micro-batches do not divide"),
    (train(steps=2**28), "train.steps * train.prompts: got 2147483648, allowed below 2^31"),
    (train(group_size=0), "train.group_size: got 0, allowed >= 1"),
    (train(gap_limit=0.0), "train.gap_limit: got 0.0, allowed > 0"),
    (train(skip_limit=0), "train.skip_limit: got 0, allowed >= 1"),
    (evaluation(every=0), "evaluation.every: got 0, allowed >= 1"),
    (evaluation(prompts=0), "evaluation.prompts: got 0"),
    (evaluation(prompts=17), "evaluation.full_prompts: got 16, allowed >= evaluation.prompts, 17"),
    (evaluation(samples=0), "evaluation.samples: got 0"),
    (evaluation(small_samples=0), "evaluation.small_samples: got 0"),
    (evaluation(ks=(1, 3)), "evaluation.ks: got 3, allowed 1 to evaluation.samples, 2"),
    (evaluation(ks=(0,)), "evaluation.ks: got 0"),
    (evaluation(show=-1), "evaluation.show: got -1"),
    ({"saving": Saving(every=0)}, "saving.every: got 0"),
    ({"saving": Saving(warm_every=0)}, "saving.warm_every: got 0"),
    ({"saving": Saving(keep=0)}, "saving.keep: got 0"),
    ({"saving": Saving(keep_best=0)}, "saving.keep_best: got 0"),
    ({"saving": dataclasses.replace(Saving(), best_mode="most")}, "saving.best_mode: got 'most', allowed max, min"),
    ({"heldout": {"a/b": PLAIN.data}}, "heldout: got a set called 'a/b', allowed are 1 to 40 letters"),
    ({"heldout": {"heldout": PLAIN.data}}, "heldout: got a set called 'heldout', allowed is any name but heldout"),
    ({"heldout": {"train": PLAIN.data}}, "heldout: got a set called 'train'"),
    ({"heldout": {"mean": PLAIN.data}}, "heldout: got a set called 'mean'"),
    ({"heldout": {"bytes": BYTES}}, "heldout.bytes: got a task with the tokenizer ByteTokenizer("),
    (
        {"heldout": {"long": Chain(operands=6)}, "model": dataclasses.replace(PLAIN.model, positions=20)},
        "heldout.long: got prompts of 13 tokens, which with completions of 8 need 21 positions, allowed up to"
        " model.positions, 20: set model.positions=21",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_cannot_be_run_is_refused_in_words(changes: Mapping[str, Any], sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        changed(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "warm_start.steps: got 0, allowed >= 1"),
        ({"steps": 9, "limit": 8}, "warm_start.limit: got 8, allowed >= steps, 9"),
        ({"check_every": 0}, "warm_start.check_every: got 0"),
        ({"gate": 1.5}, "warm_start.gate: got 1.5, allowed 0 to 1"),
        ({"gate": float("nan")}, "warm_start.gate: got nan"),
    ],
)
def test_a_warm_start_that_cannot_be_run_is_refused(changes: Mapping[str, Any], sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        dataclasses.replace(WarmStart(), **changes)


def test_without_a_warm_start_no_reward_has_to_be_called_accuracy():
    assert changed(text_rewards={"digits": (digits_in_text, 1.0)}, warm_start=None).warm_start is None


def test_an_experiment_is_a_frozen_value():
    for value in (PLAIN, Train(), WarmStart(), Evaluation(), Saving()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, 3)
    assert changed() == PLAIN and changed(seed=1) != PLAIN


def test_every_setting_is_a_line_of_text():
    text = settings(PLAIN)
    assert text["train.prompts"] == "8"
    assert text["data.modulus"] == "10"
    assert text["sampling.temperature"] == "1.0"
    assert text["mesh"] == "None"
    assert "tests.system.small_run.right" in text["reward"] and "weight" not in text["name"]
    assert set(text) == set(settings(changed(seed=5, recipe=dapo())))


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"seed": 1}, {"seed"}),
        ({"recipe": grpo(beta=0.0, clip=0.1)}, {"recipe.parts"}),
        ({"mesh": {"data": 2}}, {"mesh"}),
        (train(steps=7), {"train.steps"}),
        ({"text_rewards": {**PLAIN.text_rewards, "digits": (digits_in_text, 0.5)}}, {"text_rewards"}),
    ],
)
def test_a_change_shows_in_the_line_of_its_setting_and_in_no_other(changes: Mapping[str, Any], differ: set[str]):
    one, other = settings(PLAIN), settings(changed(**changes))
    assert {name for name in one if one[name] != other[name]} == differ


def test_what_has_no_text_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"^reward is a lambda"):
        settings(changed(reward=lambda rollouts: rollouts))
    with pytest.raises(ValueError, match=r"^text_rewards.*is an array"):
        settings(changed(text_rewards={"accuracy": (digits_in_text, jnp.ones(()))}))


def test_the_compiled_step_is_bound_to_the_settings_of_the_experiment():
    step = step_settings(changed(sampling=PLAIN.sampling.replace(temperature=0.5)))
    assert step.gradient.temperature == step.sampling.temperature == 0.5
    # 6 steps x 1 epoch x 2 minibatches.
    assert step.gradient.updates == 12 and step.gradient.group_size == 4
    assert PLAIN.warm_start is not None
    warm = warm_settings(PLAIN, PLAIN.warm_start)
    assert (warm.updates, warm.group_size, warm.recipe) == (8, 1, IMITATION)


def test_further_sets_are_settings_and_their_data_is_part_of_the_data():
    assert data_digest(PLAIN) == ""
    one, other = (changed(heldout={"more": Chain(operands=n), "bytes": PLAIN.data}) for n in (4, 5))
    assert {name: text for name, text in settings(one).items() if settings(other)[name] != text} == {
        "heldout.more.operands": "4"
    }
    assert len(data_digest(one)) == 64 and data_digest(one) == data_digest(other)
    renamed = changed(heldout={"less": Chain(operands=4), "bytes": PLAIN.data})
    assert data_digest(renamed) != data_digest(one)
