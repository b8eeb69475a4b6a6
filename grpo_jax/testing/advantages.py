"""The laws of advantage strategies, on twelve rows."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.advantages import Advantage
from grpo_jax.testing import rows as tiny
from grpo_jax.types import Array, Collected

COMPARED = ("group", "batch")
EXTREMES = (1e30, 1e-45)
"""Rewards that float32 can hold and whose squares it cannot: as wrong as they are, they may not become nan."""
_TIES = (0.85, 0.1, 0.65, 1 / 3)  # the float32 mean of three times 0.85 is not 0.85, nor of ten times 0.65
_alike = partial(np.allclose, rtol=1e-4, atol=1e-5)

Labelled = tuple[Collected, Array]
Answer = tuple[np.ndarray, Mapping[str, np.ndarray]]
Compiled = Callable[[Collected, Array], Answer]


def check_advantage(
    strategy: Advantage,
    *,
    compared: str = "group",
    local: bool | None = None,
    ties: bool = True,
    shifts: bool = True,
    memory: Mapping[str, Array] | None = None,
    labels: Iterable[str] = (),
) -> None:
    """Check that an advantage obeys the laws on which masking, padding, resuming and compiling rely.

    Shape and dtype; 0 for what does not train and for rows without a valid reward or a group, whatever stands there;
    the same numbers in any order of the rows, under other names of the groups, in wider arrays and beside further rows
    that count nowhere; finite for extreme rewards; the same again for the same input, compiled or not.

    Args:
        strategy: ``(Collected, labels i32[N], memory) -> (f32[N,T], memory)``, its settings bound with
            `functools.partial`.
        compared: "group" or "batch", whose rewards a reward is compared with: what `ties` and `shifts` speak of.
        local: the advantages of a group depend on the rewards of that group only; None: where `compared` is "group".
        ties: where all rewards compared are equal, the advantages are exactly 0. False for estimators without a
            baseline (raw REINFORCE).
        shifts: a number added to all rewards compared changes nothing. False for estimators without a baseline, and
            for those that read more than differences of rewards.
        memory: what a strategy with a state begins with; None: nothing.
        labels: names in ``Prompts.label`` that the strategy reads; they get numbers below 8, one of them negative.

    Raises:
        AssertionError: a law is broken; the text says which, and what to do.
        ValueError: `compared` is neither "group" nor "batch".
    """
    if compared not in COMPARED:
        raise ValueError(f"compared: got {compared!r}, allowed are {', '.join(map(repr, COMPARED))}: choose one")
    name, state = tiny.name_of(strategy), dict(memory or {})
    names = tuple(labels)
    given = tiny.tiny_collected(labels=names), tiny.tiny_labels()
    usual = _eager(strategy, name, given, state)
    _check_zeros(usual[0], name, given)
    compiled = _compile(strategy, name, state)
    _check_pure(strategy, compiled, name, given, state, usual)
    _check_double(strategy, name, state, names)
    _check_order(compiled, name, given)
    _check_nowhere(compiled, name, given)
    _check_rewards(compiled, name, given, compared == "batch", ties, shifts)
    if compared == "group" if local is None else local:
        _check_local(compiled, name, given)
    _check_extremes(compiled, name, given)


def _eager(strategy: Advantage, name: str, given: Labelled, state: Mapping[str, Array]) -> Answer:
    """What it answers, with the shapes and dtypes of everything checked."""
    collected, labels = given
    passed = dict(state)
    returned = strategy(collected, labels, passed)
    assert isinstance(returned, tuple) and len(returned) == 2, (
        f"{name} returns {type(returned).__name__}: a strategy returns (advantage f32[N,T], memory)"
    )
    value, after = returned
    wanted, dtype = collected.rollouts.mask.shape, collected.reward.outcome.dtype
    assert isinstance(value, jax.Array) and value.shape == wanted, (
        f"{name} returns shape {jnp.shape(value)} for rows and tokens {wanted}: an advantage gives one number a token;"
        " that of a row is spread by jnp.where(mask, row[:, None], 0.0)"
    )
    assert value.dtype == dtype, f"{name} returns {value.dtype} for rewards in {dtype}: keep the input's dtype"
    assert _same_keys(passed, state), f"{name} changes the memory that it is given: return a new one, {{**memory, ...}}"
    assert isinstance(after, Mapping) and tiny.forms(after) == tiny.forms(state), (
        f"{name} is given a memory of {tiny.forms(state)} and returns {tiny.forms(after)}: memory is part of every"
        " checkpoint and of one compiled step, so its names, shapes and dtypes stay; pass on what is not yours"
    )
    return _plain(value, after)


def _compile(strategy: Advantage, name: str, state: Mapping[str, Array]) -> Compiled:
    """The compiled strategy on any rows."""
    jitted = jax.jit(lambda collected, labels: strategy(collected, labels, dict(state)))

    def answer(collected: Collected, labels: Array) -> Answer:
        value, after = tiny.compilable(jitted, name, collected, labels)
        return _plain(value, after)

    return answer


def _check_zeros(value: np.ndarray, name: str, given: Labelled) -> None:
    """0 for what does not train, and something else where rewards differ."""
    mask = np.asarray(given[0].rollouts.mask)
    assert np.all(np.isfinite(value)), f"{name} is not finite on ordinary rewards"
    assert not value[np.asarray(tiny.NOWHERE)].any(), (
        f"{name} is not 0 for a row without a valid reward or without a group: select by grpo_jax.masked.members"
    )
    assert not value[~mask].any(), f"{name} is not 0 outside Rollouts.mask: end with jnp.where(mask, advantage, 0.0)"
    assert value.any(), f"{name} is 0 everywhere, on rewards that differ: nothing would be learned"


def _check_pure(
    strategy: Advantage, compiled: Compiled, name: str, given: Labelled, state: Mapping[str, Array], usual: Answer
) -> None:
    """The same input gives the same output, compiled or not."""
    again = _eager(strategy, name, given, state)
    assert _same(usual, again), (
        f"{name} gives other numbers at a second call: what it remembers between steps belongs into memory, chance into"
        " keys of identities; a run that is resumed would end elsewhere"
    )
    assert _close(usual, compiled(*given)), (
        f"{name} gives other numbers when it is compiled: it reads or changes something outside its arguments"
    )


def _check_double(strategy: Advantage, name: str, state: Mapping[str, Array], labels: tuple[str, ...]) -> None:
    """Float64 in, float64 out."""
    with jax.enable_x64(True):
        wide = {key: x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x for key, x in state.items()}
        _eager(strategy, name, (tiny.tiny_collected(dtype="float64", labels=labels), tiny.tiny_labels()), wide)


def _check_order(compiled: Compiled, name: str, given: Labelled) -> None:
    """Neither the order of the rows nor the numbers of the groups mean anything."""
    collected, labels = given
    value, after = compiled(*given)
    order = np.random.default_rng(1).permutation(tiny.ROWS)
    assert _close((value[order], after), compiled(*tiny.in_order(given, order))), (
        f"{name} depends on the order of the rows: groups are labels and may be interleaved; use the segment sums of"
        " grpo_jax.masked, not reshape(P, G)"
    )
    names = np.asarray([7, 2, 11, 0], np.int32)
    renamed = jnp.where(labels < 0, labels, jnp.asarray(names)[jnp.maximum(labels, 0)])
    assert _close((value, after), compiled(collected, renamed)), (
        f"{name} depends on the numbers of the labels: they only say who is compared with whom, and any number below N"
        " occurs; use num_groups=labels.shape[0]"
    )


def _check_nowhere(compiled: Compiled, name: str, given: Labelled) -> None:
    """What counts nowhere changes no number: its contents, padding, more of it, and nothing else being there."""
    usual = compiled(*given)
    collected, labels = given
    assert _same(usual, compiled(tiny.spoiled(collected), labels)), (
        f"{name} changes with nan in rows that have no valid reward or no group, or outside the mask: select before"
        " computing, as the functions of grpo_jax.masked do; a product with a mask keeps nan"
    )
    value, after = compiled(*tiny.widened(given))
    assert _close(usual, (value[:, : tiny.WIDTH], after)) and not value[:, tiny.WIDTH :].any(), (
        f"{name} depends on the width of the padding: use sums and counts over Rollouts.mask, not over the array"
    )
    more, longer = tiny.grown(given)
    extra = np.arange(longer.shape[0]) >= tiny.ROWS
    more = tiny.unscored(more, extra & (np.arange(longer.shape[0]) % 2 == 0))
    longer = jnp.where(jnp.asarray(extra & (np.arange(longer.shape[0]) % 2 == 1)), -1, longer)
    value, after = compiled(tiny.spoiled(more), longer)
    assert _close(usual, (value[: tiny.ROWS], after)) and not value[tiny.ROWS :].any(), (
        f"{name} changes with further rows that have no valid reward or no group: such a row was never sampled, and is"
        " in no mean, deviation or count"
    )
    value, _ = compiled(tiny.unscored(collected, np.ones(tiny.ROWS, bool)), labels)
    assert not value.any(), f"{name} is not 0 where no row could be scored: guard divisions by jnp.maximum(count, 1.0)"


def _check_rewards(compiled: Compiled, name: str, given: Labelled, batch: bool, ties: bool, shifts: bool) -> None:
    """Equal rewards teach nothing; a number added to all of them changes nothing."""
    collected, labels = given
    member = jnp.asarray(~np.asarray(tiny.NOWHERE))
    chosen = member if batch else member & (labels == 1)  # of three rows: the mean of four equal numbers is exact
    where = f"the {'batch' if batch else 'group'}"
    for reward in _TIES if ties else ():
        flat = tiny.rescored(collected, lambda x, r=reward: jnp.where(chosen, jnp.asarray(r, x.dtype), x))
        value = compiled(flat, labels)[0][np.asarray(chosen)]
        assert not value.any(), (
            f"{name} gives {value[value != 0][0]:g} where all rewards of {where} are {reward:g}: they teach nothing,"
            " and the rounding of their mean must not become an advantage: ask grpo_jax.groups.tied (an estimator"
            " without a baseline is checked with ties=False)"
        )
    if shifts:
        moved = tiny.rescored(collected, lambda x: jnp.where(chosen, x + 2.0, x))
        assert _alike(compiled(*given)[0], compiled(moved, labels)[0]), (
            f"{name} changes where 2 is added to all rewards of {where}: take the mean of what is compared off (an"
            " estimator without a baseline is checked with shifts=False)"
        )


def _check_local(compiled: Compiled, name: str, given: Labelled) -> None:
    """The advantages of a group depend on the rewards of that group only."""
    collected, labels = given
    first = labels == 0
    other = tiny.rescored(collected, lambda x: jnp.where(first, 10.0 * x + x * x, x))
    before, after = compiled(*given)[0], compiled(other, labels)[0]
    kept = ~np.asarray(first)
    assert np.allclose(before[kept], after[kept], rtol=1e-6, atol=1e-7), (
        f"{name} of a group changes with the rewards of another group: use statistics of the group (one that means to"
        " look at the whole batch is checked with local=False)"
    )


def _check_extremes(compiled: Compiled, name: str, given: Labelled) -> None:
    """Rewards of +-1e30 and of the smallest float32 give finite numbers."""
    collected, labels = given
    group, first = labels == 0, jnp.arange(tiny.ROWS) == 0
    for high in EXTREMES:
        for low in (high, -high, 0.0):

            def extreme(x: Array, high: float = high, low: float = low) -> Array:
                return jnp.where(first, jnp.asarray(high, x.dtype), jnp.where(group, jnp.asarray(low, x.dtype), x))

            value, after = compiled(tiny.rescored(collected, extreme), labels)
            assert all(np.all(np.isfinite(x)) for x in [value, *after.values()]), (
                f"{name} is not finite where the rewards of a group are {high:g} and {low:g}: squares of large numbers"
                " overflow and those of small ones vanish; guard the division (jnp.maximum, eps), and subtract no two"
                " infinities"
            )


def _plain(value: Array, memory: Mapping[str, Array]) -> Answer:
    return np.asarray(value), {key: np.asarray(x) for key, x in memory.items()}


def _same_keys(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


def _same(a: Answer, b: Answer) -> bool:
    return np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][key], b[1][key]) for key in a[1])


def _close(a: Answer, b: Answer) -> bool:
    return _alike(a[0], b[0]) and all(_alike(a[1][key], b[1][key]) for key in a[1])
