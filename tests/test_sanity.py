"""Settings that are out of type, not finite, or do not fit together are refused when the experiment is made."""

import dataclasses
import math
from functools import partial

import pytest

from grpo_jax import advantages, groups, objectives
from grpo_jax.experiment import Experiment
from grpo_jax.types import Array, Collected
from grpo_jax.updates import TrustRegion
from tests.system import small_run
from tests.system.small_run import PLAIN


def alone(recipe: object = PLAIN.recipe, **train: int) -> Experiment:
    sizes = {"group_size": 1, "prompts": 8, "minibatches": 2, **train}
    return dataclasses.replace(PLAIN, recipe=recipe, train=dataclasses.replace(PLAIN.train, **sizes))


def one_group(collected: Collected, memory: groups.Memory) -> tuple[Array, groups.Memory]:
    return 0 * collected.rollouts.prompt, memory


def changed(group: str, **values: object) -> Experiment:
    return dataclasses.replace(PLAIN, **{group: dataclasses.replace(getattr(PLAIN, group), **values)})


REFUSED = {
    "a fraction of a step": (lambda: changed("train", steps=3.5), r"train\.steps: got 3\.5, allowed is a whole number"),
    "a text": (lambda: changed("evaluation", show=True), r"evaluation\.show: got True, allowed is a whole number"),
    "an infinite rate": (lambda: changed("optimizer", learning_rate=math.inf), r"optimizer\.learning_rate: got inf"),
    "a rate that is none": (lambda: changed("optimizer", weight_decay=math.inf), r"optimizer\.weight_decay: got inf"),
    "infinite heat": (lambda: changed("sampling", temperature=math.inf), r"sampling\.temperature: got inf, .*finite"),
    "heat that is none": (lambda: changed("sampling", temperature=math.nan), r"sampling\.temperature: got nan"),
    "a base that is none": (lambda: changed("model", rope_theta=math.nan), r"model\.rope_theta: got nan"),
    "a nested number": (
        lambda: changed("warm_start", optimizer=dataclasses.replace(PLAIN.optimizer, final=math.inf)),
        r"warm_start\.optimizer\.final: got inf",
    ),
    "values without a critic": (
        lambda: dataclasses.replace(PLAIN, recipe=objectives.ppo_critic()),
        r"model\.critic: got None, allowed head, tower .*--set model\.critic=head",
    ),
    "a critic that nobody teaches": (
        lambda: dataclasses.replace(
            changed("model", critic="head"), recipe=dataclasses.replace(PLAIN.recipe, advantage=advantages.gae)
        ),
        r"recipe\.parts: got none that teaches the critic, .*Part\(token_mean, value_clip\)",
    ),
    "a critic in a trust region": (
        lambda: dataclasses.replace(small_run.CRITIC, optimizer=TrustRegion()),
        r"optimizer: got TrustRegion, allowed Optimizer, SGD with a recipe that teaches a critic",
    ),
    "a rate of no critic": (
        lambda: changed("optimizer", critic_rate=2.0),
        r"optimizer\.critic_rate: got 2\.0, allowed 1\.0, because no critic learns",
    ),
    "a wait in the warm start": (
        lambda: changed("warm_start", optimizer=dataclasses.replace(PLAIN.optimizer, critic_warmup=5)),
        r"warm_start\.optimizer\.critic_warmup: got 5, allowed 0",
    ),
    "no worker": (lambda: changed("scoring", workers=0), r"scoring\.workers: got 0, allowed None or >= 1"),
    "no time": (lambda: changed("scoring", timeout_s=0), r"scoring\.timeout_s: got 0, allowed > 0"),
    "all time": (lambda: changed("scoring", timeout_s=math.inf), r"scoring\.timeout_s: got inf"),
    "no memory": (lambda: changed("scoring", memory_mb=0), r"scoring\.memory_mb: got 0, allowed >= 1"),
    "a share above 1": (lambda: changed("scoring", failure_share=2), r"scoring\.failure_share: got 2, allowed 0 to 1"),
    "a label that the prompts lack": (
        lambda: changed("recipe", grouping=partial(groups.drop_tied, grouping=groups.GROUPINGS["by_category"])),
        r"recipe\.grouping: by_label\.name: got 'category', allowed none, the labels of the prompts: .*data\.labels",
    ),
    "a stop token that is none": (lambda: changed("sampling", stop=(20,)), r"sampling\.stop: got 20, .* 0 to 19"),
    "a reward without a weight": (
        lambda: dataclasses.replace(PLAIN, text_rewards={"accuracy": one_group}),
        r"text_rewards\['accuracy'\]: got .*, allowed is a pair of a function and its weight",
    ),
    "a reward that is no function": (
        lambda: dataclasses.replace(PLAIN, text_rewards={"accuracy": (3, 1.0)}),
        r"text_rewards\['accuracy'\]: got \(3, 1\.0\), allowed is a pair",
    ),
    "rewards without names": (
        lambda: dataclasses.replace(PLAIN, text_rewards=((one_group, 1.0),)),
        "text_rewards: got a tuple, allowed is a mapping",
    ),
    "an infinite weight": (
        lambda: dataclasses.replace(PLAIN, text_rewards={"accuracy": (one_group, math.inf)}),
        r"its weight: got inf, allowed are finite",
    ),
    "a group of one": (alone, r"train\.group_size: got 1, allowed >= 2 with the advantage group_standardized: "),
    "a group of one, by a convention without a keyword": (
        lambda: alone(dataclasses.replace(PLAIN.recipe, advantage=advantages.maxrl)),
        r"train\.group_size: got 1, allowed >= 2 with the advantage maxrl: ",
    ),
    "a group of one, whatever is dropped": (
        lambda: alone(dataclasses.replace(PLAIN.recipe, grouping=groups.drop_tied)),
        r"train\.group_size: got 1",
    ),
    # 12 prompts over 2 x 4 shards: 8 or 16.
    "prompts over a mesh": (
        lambda: dataclasses.replace(alone(prompts=12, group_size=4), mesh={"data": 2, "fsdp": 4}),
        r"train\.prompts: got 12, which 8 shards of the mesh .* do not divide; .* 8 and 16: change train\.prompts",
    ),
    "demonstrations over a mesh": (
        lambda: dataclasses.replace(changed("warm_start", rows=6), mesh={"data": 2, "fsdp": 4}),
        r"warm_start\.rows: got 6, which 8 shards .* nearest valid numbers are 8: change",
    ),
    "half a device": (
        lambda: dataclasses.replace(PLAIN, mesh={"data": 1.5}),
        r"mesh\['data'\]: got 1\.5, allowed is a",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_does_not_fit_is_refused_in_words(case: str):
    make, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_limit_may_be_switched_off_by_infinity():
    assert changed("train", gap_limit=math.inf).train.gap_limit == math.inf


def test_a_group_of_one_is_fine_where_it_is_compared_with_something_else():
    for recipe in (
        dataclasses.replace(PLAIN.recipe, advantage=advantages.batch_centered),
        dataclasses.replace(PLAIN.recipe, advantage=partial(advantages.group_centered, singleton="raw")),
        dataclasses.replace(PLAIN.recipe, grouping=one_group),
    ):
        assert alone(recipe).train.group_size == 1
    assert alone(steps=0).train.group_size == 1
