"""The laws of groupings, on twelve rows."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.groups import Grouping
from grpo_jax.testing import rows as tiny
from grpo_jax.types import Array, Collected

Compiled = Callable[[Collected], np.ndarray]


def check_grouping(
    grouping: Grouping, *, labels: Iterable[str] = (), memory: Mapping[str, Array] | None = None
) -> None:
    """Check that a grouping obeys the laws on which advantages, masking and resuming rely.

    One label below N a row, which rows have the same one does not depend on the order of the rows, on padding, or on
    rows without a valid reward and what stands in them; the same again for the same input, compiled or not.

    Args:
        grouping: ``(Collected, memory) -> (labels i32[N], memory)``, its settings bound with `functools.partial`.
        labels: names in ``Prompts.label`` that the grouping reads; they get numbers, one of them negative.
        memory: what a grouping with a state begins with; None: nothing.

    Raises:
        AssertionError: a law is broken; the text says which, and what to do.
    """
    name, state = tiny.name_of(grouping), dict(memory or {})
    given = tiny.tiny_collected(labels=labels)
    usual = _eager(grouping, name, given, state)
    assert np.array_equal(usual, _eager(grouping, name, given, state)), (
        f"{name} gives other labels at a second call: what it remembers between steps belongs into memory"
    )
    compiled = _compile(grouping, name, state)
    counted = ~np.asarray(tiny.NOWHERE)
    pairs = tiny.together(usual, counted)
    assert np.array_equal(pairs, tiny.together(compiled(given), counted)), (
        f"{name} gives other groups when it is compiled: it reads or changes something outside its arguments"
    )
    order = np.random.default_rng(1).permutation(tiny.ROWS)
    moved = tiny.together(compiled(tiny.in_order(given, order)), counted[order])
    assert np.array_equal(pairs[np.ix_(*_places(order, counted))], moved), (
        f"{name} depends on the order of the rows: rows name their prompt, Rollouts.prompt, and their sample"
    )
    assert np.array_equal(pairs, tiny.together(compiled(tiny.spoiled(given)), counted)), (
        f"{name} changes with nan in rows that have no valid reward, or outside the mask: a row that could not be"
        " scored decides nothing"
    )
    assert np.array_equal(pairs, tiny.together(compiled(tiny.widened(given)), counted)), (
        f"{name} depends on the width of the padding: read through Rollouts.mask"
    )
    more = tiny.grown(given)
    extra = np.arange(more.reward.valid.shape[0]) >= tiny.ROWS
    among = np.concatenate([counted, np.zeros(int(extra.sum()), bool)])
    found = compiled(tiny.spoiled(tiny.unscored(more, extra)))
    assert np.array_equal(pairs, tiny.together(found, among)), (
        f"{name} changes with further rows that have no valid reward: such a row was never sampled"
    )


def _places(order: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the counted rows, in the new order, stand among the counted rows in the old one."""
    number = np.cumsum(counted) - 1
    places = number[order[counted[order]]]
    return places, places


def _eager(grouping: Grouping, name: str, given: Collected, state: Mapping[str, Array]) -> np.ndarray:
    labels, after = grouping(given, dict(state))
    rows = given.reward.valid.shape[0]
    assert isinstance(labels, jax.Array) and labels.shape == (rows,) and labels.dtype == jnp.int32, (
        f"{name} returns labels {getattr(labels, 'dtype', type(labels).__name__)}{list(jnp.shape(labels))} for"
        f" {rows} rows: a grouping gives one label a row, i32[N]"
    )
    found = np.asarray(labels)
    assert found.max() < rows, f"{name} returns the label {found.max()} for {rows} rows: labels lie below N, -1 is none"
    assert isinstance(after, Mapping) and tiny.forms(after) == tiny.forms(state), (
        f"{name} is given a memory of {tiny.forms(state)} and returns {tiny.forms(after)}: its names, shapes and dtypes"
        " stay; pass on what is not yours"
    )
    return found


def _compile(grouping: Grouping, name: str, state: Mapping[str, Array]) -> Compiled:
    jitted = jax.jit(lambda collected: grouping(collected, dict(state))[0])

    def labels(collected: Collected) -> np.ndarray:
        return np.asarray(tiny.compilable(jitted, name, collected))

    return labels
