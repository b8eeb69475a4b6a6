"""The records: immutable pytrees that say the shape of every field, in letters that mean one thing."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.types import Batch, Collected, Prompts, Reward, Rollouts, Seen, TokenStats, TrainState
from tests.laws import tiny
from tests.laws.tiny import record

RECORDS = (Prompts, Rollouts, TokenStats, Reward, Seen, Collected, Batch, TrainState)
SHAPE = re.compile(r"\b(?:f32|i32|bool)\[([^\]]*)\]")


def letters() -> set[str]:
    """The letters of the table at the head of the module."""
    return set(re.findall(r"^([A-Z])\s{2,}\w", inspect.getdoc(types) or "", re.MULTILINE))


def comments(kind: type) -> dict[str, str]:
    """Field -> the comment that stands beside it."""
    found = re.findall(r"^    (\w+): [^#\n]+#\s*(.+)$", inspect.getsource(kind), re.MULTILINE)
    return dict(found)


def test_the_table_names_every_letter_once():
    assert letters() == set("PGNSTKMVDHJCFL")


@pytest.mark.parametrize("kind", RECORDS)
def test_every_array_says_its_shape_in_letters_of_the_table(kind):
    said = comments(kind)
    for field in dataclasses.fields(kind):
        if "Array" not in str(field.type) or field.name == "memory":  # of which each stateful part says its own
            continue
        shapes = SHAPE.findall(said.get(field.name, ""))
        assert shapes, f"{kind.__name__}.{field.name} does not say its shape"
        for shape in shapes:
            names = {part.strip() for part in shape.split(",") if part.strip()}
            assert names <= letters() | {"top-k"}, f"{kind.__name__}.{field.name}: {names - letters()}"


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_cannot_be_changed_in_place(kind):
    blank = kind(**{field.name: None for field in dataclasses.fields(kind)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(blank, dataclasses.fields(kind)[0].name, 1)
    name = dataclasses.fields(kind)[0].name
    assert getattr(blank.replace(**{name: 1}), name) == 1 and getattr(blank, name) is None


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_a_pytree_of_its_fields(kind):
    values = {field.name: np.float32(k) for k, field in enumerate(dataclasses.fields(kind))}
    doubled = jax.tree.map(lambda x: 2 * x, kind(**values))
    assert type(doubled) is kind
    assert {name: getattr(doubled, name) for name in values} == {name: 2 * x for name, x in values.items()}


def test_rows_lead_everywhere_but_in_the_choices_of_experts():
    paths, _ = jax.tree_util.tree_flatten_with_path(tiny.rows().replace(experts=np.zeros(1)))
    assert [jax.tree_util.keystr(path) for path, _ in paths if types.row_axis(path) == 1] == [".experts"]
    assert types.row_axis((jax.tree_util.DictKey("experts"),)) == 0  # a component of a reward may be called so


def test_an_absent_field_is_absent_from_the_structure():
    there = TokenStats(logp=jnp.zeros(1), entropy=jnp.zeros(1))
    absent = TokenStats(logp=jnp.zeros(1))
    assert len(jax.tree.leaves(there)) == 2 and len(jax.tree.leaves(absent)) == 1
    assert jax.tree.structure(there) != jax.tree.structure(absent)


def test_whether_a_row_could_be_scored_has_no_default():
    with pytest.raises(TypeError, match="valid"):
        record(Reward, outcome=np.zeros(1))


def test_tables_of_two_records_are_not_one():
    a, b = (Reward(outcome=jnp.zeros(1), valid=jnp.ones(1, bool)) for _ in range(2))
    assert a.components == {} and a.components is not b.components
