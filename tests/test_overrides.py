"""``--set`` reads a value by the type of its setting, changes nothing else, and refuses with the way out."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import pytest

from grpo_jax.advantages import opo
from grpo_jax.groups import drop_tied
from grpo_jax.objectives import RECIPES
from grpo_jax.overrides import override, repeated
from tests.system.small_run import PLAIN


class Part(NamedTuple):
    name: str
    weight: float


def term(x: float, *, low: float = 0.2, high: float | None = None, rounds: int = 3) -> float:
    return x + low + (high or 0) + rounds


def untyped(x, *, rate=0.5):
    return x * rate


def plain(x):
    return x


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 8
    rate: float = 0.1
    kind: Literal["linear", "cosine"] = "linear"
    width: int | None = None
    on: bool = False


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "a"
    inner: Inner = Inner()
    maybe: Inner | None = None
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
    stop: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[int, float], ...] = ((1, 0.5),)
    parts: tuple[Part, ...] = (Part("first", 1.0), Part("second", 2.0))
    function: partial = partial(term, low=0.1)
    bare: Callable = term
    plain: Callable = plain
    loose: partial = partial(untyped, rate=0.25)
    mesh: Mapping[str, int] | None = None
    weights: Mapping[str, tuple[partial, float]] = dataclasses.field(
        default_factory=lambda: {"accuracy": (partial(term, low=0.3), 1.0)}
    )

    def __post_init__(self) -> None:
        if self.inner.size % 4 and self.inner.rate < 1:
            raise ValueError("size: must be a multiple of 4 where the rate is below 1")


CASES = [
    ("name=b", "name", "b"),
    ("name='a=b'", "name", "a=b"),
    ("inner.size=1_024", "inner.size", 1024),
    ("inner.rate=2", "inner.rate", 2.0),
    ("inner.rate=1e-3", "inner.rate", 0.001),
    ("inner.kind=cosine", "inner.kind", "cosine"),
    ("inner.width=64", "inner.width", 64),
    ("inner.width=None", "inner.width", None),
    ("inner.on=yes", "inner.on", True),
    ("inner.on=False", "inner.on", False),
    (" inner.size = 12 ", "inner.size", 12),
    ("shares=(0.2, 0.3, 0.5)", "shares", (0.2, 0.3, 0.5)),
    ("shares.1=1", "shares", (0.5, 1.0, 0.25)),
    ("stop=7", "stop", (7,)),
    ("stop=()", "stop", ()),
    ("pairs=(1, 0.5), (2, 1)", "pairs", ((1, 0.5), (2, 1.0))),
    ("pairs=[(3, 4)]", "pairs", ((3, 4.0),)),
    ("pairs.0.1=9", "pairs", ((1, 9.0),)),
    ("parts.1.weight=0.5", "parts", (Part("first", 1.0), Part("second", 0.5))),
    ("mesh=data:2,fsdp:4", "mesh", {"data": 2, "fsdp": 4}),
    ('mesh={"data": 2, "fsdp": 4}', "mesh", {"data": 2, "fsdp": 4}),
    ("mesh=none", "mesh", None),
]


@pytest.mark.parametrize(("assignment", "path", "expected"), CASES)
def test_a_value_is_read_by_the_type_of_its_setting(assignment: str, path: str, expected: object):
    found: object = override(Outer(), [assignment])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected and type(found) is type(expected)


def test_keywords_of_partials_are_settings_with_their_defaults():
    changed = override(Outer(), ["function.low=0.4", "function.high=1", "function.rounds=5", "loose.rate=2"])
    assert changed.function.keywords == {"low": 0.4, "high": 1.0, "rounds": 5}
    assert changed.loose.keywords == {"rate": 2.0}
    assert changed.function.func is term
    assert override(Outer(), ["function.high=None"]).function.keywords == {"low": 0.1, "high": None}


def test_a_mapping_is_reached_by_its_keys():
    changed = override(Outer(), ["weights.accuracy.0.low=0.5", "weights.accuracy.1=2"])
    function, weight = changed.weights["accuracy"]
    assert (function.keywords, weight) == ({"low": 0.5}, 2.0)


def test_a_function_that_is_not_bound_yet_has_its_keywords_as_settings():
    changed = override(Outer(), ["bare.low=0.5", "bare.high=2"])
    assert changed.bare.func is term and changed.bare.keywords == {"low": 0.5, "high": 2.0}


def test_nothing_else_changes():
    before = Outer()
    assert dataclasses.replace(override(before, ["inner.size=12"]), inner=Inner()) == before
    assert override(before, []) is before
    assert (before.name, before.inner) == ("a", Inner())


def test_settings_that_only_fit_together_change_together_in_any_order():
    for assignments in (["inner.size=3", "inner.rate=1"], ["inner.rate=1", "inner.size=3"]):
        assert override(Outer(), assignments).inner == Inner(size=3, rate=1.0)
    with pytest.raises(ValueError, match="multiple of 4"):
        override(Outer(), ["inner.size=3"])


def test_the_later_of_two_values_counts():
    assignments = ["inner.size=4", "name=x", " inner.size = 16"]
    assert override(Outer(), assignments).inner.size == 16
    assert repeated(assignments) == {"inner.size": ["4", "16"]} and repeated(assignments[:2]) == {}


REFUSED = [
    ("inner.size", "got 'inner.size', allowed is path=value"),
    ("=3", "allowed is path=value"),
    ("inner..size=3", "allowed is path=value"),
    ("iner.size=3", "got 'iner', allowed .*did you mean inner?"),
    ("inner.sise=3", "inner.sise: got 'sise', allowed kind, on, rate, size, width: did you mean inner.size?"),
    ("inner.size.x=3", "inner.size is 8, which has no settings of its own; allowed is inner.size itself"),
    ("maybe.size=3", "maybe is None, which has no settings of its own"),
    ("inner.size=eight", "inner.size: got 'eight', allowed is a value of type int: write for instance inner.size=8"),
    ("inner.size=1.5", "got '1.5', allowed is a value of type int"),
    ("inner.size=", "got '', allowed is a value of type int"),
    ("inner.rate=nan", "got 'nan', allowed is a value of type float"),
    ("inner.on=maybe", "got 'maybe', allowed is a value of type bool"),
    ("inner.kind=cosin", "got 'cosin', allowed linear, cosine: write for instance cosine"),
    ("inner.width=wide", "got 'wide', allowed is a value of type int or None"),
    (
        "inner=8",
        "got '8', but this setting holds a Inner of size, rate, kind, width, on, which no text can give; allowed is a"
        " part of it: set for instance inner.size",
    ),
    ("parts=3", "which no text can give; allowed is a part of it: set for instance parts.name"),
    ("parts.0.wieght=3", "got 'wieght', allowed name, weight: did you mean parts.0.weight? It is now 1.0"),
    ("stop=", "got nothing, allowed is at least (): write stop=() for none"),
    ("mesh=", "got nothing, allowed is at least {}: write mesh={} for none"),
    ("inner.size=1__0", "got '1__0', allowed is a value of type int"),
    ("inner.size=1e3", "inner.size=1000"),
    ("inner.size=12.0", "write for instance inner.size=12"),
    ("bare.low=x", "got 'x', allowed is a value of type float: write for instance bare.low=0.2"),
    ("bare.x=1", "got 'x', allowed high, low, rounds"),
    ("plain.x=1", "got 'x', allowed nothing"),
    (
        "plain=other",
        "holds the function plain, which no text can give; allowed is another one in the experiment's",
    ),
    ("shares=1,2", "got 2 values, allowed are 3"),
    ("shares.3=1", "got '3', allowed 0, 1, 2"),
    ("stop=1,x", "got 'x', allowed is a value of type int"),
    ("pairs=(1, 2", "allowed are brackets in pairs"),
    ("pairs=(1, 2, 3), (4, 5)", "got 3 values, allowed are 2"),
    (
        "function=term",
        "holds the function term with low, high, rounds, which no text can give; allowed is a part of it: set for"
        " instance function.low",
    ),
    ("function.lo=0.1", "got 'lo', allowed high, low, rounds: did you mean function.low?"),
    ("function.x=0.1", "got 'x', allowed high, low, rounds"),
    ("mesh=data", "allowed is name:value,name:value"),
    ("mesh=data:two", "got 'two' for data, allowed is a value of type int: write for instance mesh=data:2"),
    ("weights.format.1=2", "got 'format', allowed accuracy"),
]


@pytest.mark.parametrize(("assignment", "sentence"), REFUSED)
def test_what_cannot_be_set_is_refused_with_the_way_out(assignment: str, sentence: str):
    with pytest.raises(ValueError, match="--set") as refusal:
        override(Outer(), [assignment])
    pattern = re.escape(sentence).replace(r"\.\*", ".*")
    assert re.search(pattern, str(refusal.value)), str(refusal.value)


def test_a_setting_and_a_part_of_it_exclude_each_other():
    for assignments in (["shares=1,2,3", "shares.0=1"], ["shares.0=1", "shares=1,2,3"]):
        with pytest.raises(ValueError, match=r"got shares and shares\.0, allowed is a setting or a part of it"):
            override(Outer(), assignments)


def test_an_experiment_is_changed_in_every_corner():
    changed = override(
        PLAIN,
        [
            "train.prompts=12",
            "train.minibatches=3",
            "data.styles=0.2,0.3,0.5",
            "sampling.temperature=0.7",
            "sampling.stop=3,4",
            "warm_start.optimizer.learning_rate=0.1",
            "recipe.parts.0.term.low=0.3",
            "reward.rewards.1.2=0.5",
            "text_rewards.digits.1=0.5",
            "mesh=data:2",
            "evaluation.full_prompts=None",
        ],
    )
    assert (changed.train.prompts, changed.train.minibatches) == (12, 3)
    assert changed.data.styles == (0.2, 0.3, 0.5)
    assert (changed.sampling.temperature, changed.sampling.stop) == (0.7, (3, 4))
    assert changed.warm_start.optimizer.learning_rate == 0.1
    assert changed.recipe.parts[0].term.keywords["low"] == 0.3
    assert changed.reward.keywords["rewards"][1][2] == changed.text_rewards["digits"][1] == 0.5
    assert changed.mesh == {"data": 2}
    assert changed.evaluation.full_prompts is None
    assert override(PLAIN, ["warm_start=None"]).warm_start is None
    assert override(PLAIN, ["reward=None"]).reward is None


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.promts=3", "did you mean train.prompts?"),
        ("train.prompts=9", "the nearest valid numbers are 8 and 10"),
        ("model.vocab=3", "allowed >= 20, the tokenizer's"),
        ("warm_start.gate=50", "allowed 0 to 1"),
        (
            "recipe.parts.0.term=dapo",
            "which no text can give; allowed is a part of it: set for instance recipe.parts.0",
        ),
        # What is no number is told the range in which its own constructor wants it.
        ("train.steps=many", "got 'many', allowed is a value of type int, >= 0: write for instance train.steps=6"),
        ("sampling.top_p=x", "a value of type float, 0 < top_p <= 1, where 1 cuts nothing: write for instance"),
        ("optimizer.learning_rate=nan", "got 'nan', allowed is a value of type float, > 0: write for instance"),
        ("warm_start.gate=", "got '', allowed is a value of type float, 0 to 1"),
    ],
)
def test_an_experiment_refuses_in_words(assignment: str, sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        override(PLAIN, [assignment])


def test_recipes_advantages_and_groupings_of_the_library_are_given_by_name():
    assert override(PLAIN, ["recipe=dapo"]).recipe is RECIPES["dapo"]
    changed = override(PLAIN, ["recipe.advantage=opo", "recipe.grouping=drop_tied", "train.steps=3"])
    assert changed.recipe == dataclasses.replace(PLAIN.recipe, advantage=opo, grouping=drop_tied)
    critic = override(PLAIN, ["recipe=ppo_critic", "model.critic=head"])
    assert critic.recipe == RECIPES["ppo_critic"] and critic.model.critic == "head"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("recipe=dapoo", "--set recipe: got 'dapoo', allowed grpo, dr_grpo, .*: did you mean recipe=dapo?"),
        ("recipe=", "--set recipe: got '', allowed grpo, .*: write for instance recipe=grpo"),
        ("recipe.advantage=opos", "--set recipe.advantage: got 'opos', .*did you mean recipe.advantage=opo?"),
        (
            "recipe.grouping=by_promt",
            "--set recipe.grouping: got 'by_promt', .*did you mean recipe.grouping=by_prompt?",
        ),
    ],
)
def test_an_unknown_name_of_the_library_is_refused_with_the_nearest(assignment: str, words: str):
    with pytest.raises(ValueError, match=words):
        override(PLAIN, [assignment])


def test_a_recipe_and_a_part_of_it_are_not_both_taken():
    with pytest.raises(ValueError, match=r"got recipe and recipe\.advantage, allowed is a setting or a part of it"):
        override(PLAIN, ["recipe=dapo", "recipe.advantage=opo"])
