"""An experiment made by a function: its arguments come from the command line, typed, and everything else goes on."""

import dataclasses
from functools import partial
from typing import Any

import pytest

from grpo_jax.arguments import made
from grpo_jax.experiment import Experiment
from grpo_jax.sampling import Sampling
from tests.system.small_run import PLAIN


@dataclasses.dataclass(frozen=True)
class Adapter:
    rank: int = 8
    alpha: float = 16.0


def small(
    *,
    checkpoint: str,
    steps: int,
    rate: float = 0.01,
    cold: bool = False,
    name: str | None = None,
    stop: tuple[int, ...] = (7,),
    adapter: Adapter = Adapter(),
    data: str = "unused",
) -> Experiment:
    """Everything that arrives stands somewhere in what is returned."""
    return dataclasses.replace(
        PLAIN,
        name=name or checkpoint,
        train=dataclasses.replace(PLAIN.train, steps=steps),
        optimizer=dataclasses.replace(PLAIN.optimizer, learning_rate=rate, warmup=adapter.rank),
        warm_start=None if cold else PLAIN.warm_start,
        sampling=Sampling(max_tokens=PLAIN.sampling.max_tokens, stop=stop),
        heldout={data: PLAIN.data},
    )


def warmup(experiment: Experiment) -> int | None:
    return getattr(experiment.optimizer, "warmup", None)


GIVEN = ("checkpoint=folder", "steps=3")


def test_an_experiment_is_taken_as_it_stands():
    assert made(PLAIN, ()) is PLAIN
    assert made(PLAIN, ["seed=4"]).seed == 4


def test_arguments_are_read_by_their_annotations():
    flags = ["rate=1e-3", "cold=yes", "stop=3,4", "adapter.rank=2", "data=further", "name=None"]
    found = made(small, [*GIVEN, *flags])
    assert (found.name, found.train.steps, warmup(found)) == ("folder", 3, 2)
    assert (found.warm_start, found.sampling.stop, list(found.heldout)) == (None, (3, 4), ["further"])
    assert getattr(found.optimizer, "learning_rate", None) == 0.001
    assert made(small, [*GIVEN, "name=other"]).name == "other"


def test_every_other_path_is_a_setting_of_what_the_function_returned():
    # `data` is an argument and a field: alone it is the argument, and a path below it leads into the field.
    found = made(small, [*GIVEN, "train.prompts=12", "data.operands=4", "seed=5", "optimizer.warmup=9"])
    assert (found.train.prompts, found.train.steps, found.seed, warmup(found)) == (12, 3, 5, 9)
    assert getattr(found.data, "operands", None) == 4 and list(found.heldout) == ["unused"]


def test_what_a_variant_binds_can_be_changed_and_need_not_be_given():
    variant = partial(small, checkpoint="bound", steps=2, adapter=Adapter(rank=1))
    assert (made(variant, ()).name, warmup(made(variant, ()))) == ("bound", 1)
    changed = made(variant, ["checkpoint=given", "adapter.rank=5"])
    assert (changed.name, changed.train.steps, warmup(changed)) == ("given", 2, 5)


def test_the_later_of_two_values_counts():
    assert made(small, [*GIVEN, "steps=4", "seed=1", "seed=2"]).train.steps == 4


def positional(checkpoint: str, *, steps: int = 1) -> Experiment:
    return dataclasses.replace(PLAIN, name=checkpoint, seed=steps)


def wrong(*, seed: int = 0) -> Any:
    return {"seed": seed}


def untyped(*, rate, least=None):
    return dataclasses.replace(PLAIN, seed=rate + least)


REFUSED = [
    (small, (), "EXPERIMENT: got no value for checkpoint: str, steps: int, allowed is one for every argument of small"),
    (small, (), "that has no default: add --set checkpoint=STR --set steps=INT"),
    (small, ("steps=3",), "got no value for checkpoint: str, allowed .* add --set checkpoint=STR$"),
    (partial(small, steps=3), ("checkpont=a",), "--set checkpont: got 'checkpont', .*: did you mean checkpoint?"),
    (small, ("checkpoint=a", "tran.steps=3"), "did you mean train?"),
    (small, ("nothing=a",), "allowed the arguments of EXPERIMENT, adapter, checkpoint, .*, or the settings of"),
    (small, (*GIVEN, "train.stps=3"), "did you mean train.steps?"),
    (small, ("checkpoint=a", "steps=many"), "--set steps: got 'many', allowed is a value of type int"),
    (small, (*GIVEN, "adapter.rnk=3"), "did you mean adapter.rank?"),
    (small, (*GIVEN, "adapter=3"), "which no text can give; allowed is a part of it: set for instance adapter.rank"),
    (small, (*GIVEN, "stop=1", "stop.0=2"), "allowed is a setting or a part of it"),
    (positional, ("checkpoint=a",), "the positional arguments checkpoint, allowed are keyword-only ones"),
    (partial(positional, "a"), (), "write def positional\\(\\*, checkpoint, steps\\)"),
    (wrong, (), "wrong\\(...\\), which EXPERIMENT holds, returned a dict, allowed is a grpo_jax.Experiment"),
    (untyped, ("least=3",), "which no text can give"),
    (untyped, (), "got no value for rate: any value, allowed .* add --set rate=VALUE"),
    ({"seed": 0}, (), "EXPERIMENT holds a dict, allowed is a grpo_jax.Experiment, or a function that returns one"),
]


@pytest.mark.parametrize(("value", "assignments", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_made_is_refused_with_the_way_out(value: object, assignments: tuple[str, ...], words: str):
    with pytest.raises(ValueError, match=words):
        made(value, assignments)
