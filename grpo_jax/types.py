"""The records that flow through a GRPO step, and the letters of their shapes.

======  ====================================================================
letter  meaning
======  ====================================================================
P       prompts in a step
G       samples drawn for a prompt
N       rows (completions); ``P * G`` when no group is ragged
S       width of the prompt array
T       width of the completion array
K       decode slots
M       groups
V       vocabulary
D       model width
H       query heads
J       key/value heads
C       width of a head
F       feed-forward width
L       layers
======  ====================================================================

Every record is an immutable pytree (``flax.struct.PyTreeNode``, a frozen dataclass). A field that is ``None`` is absent
*statically*: the structure of the pytree changes, so nothing is computed or stored for it. Per-token arrays are aligned
to the token they score: ``logp[n, t]`` belongs to ``tokens[n, t]``.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

Array = jax.Array
Params = Mapping[str, Any]
"""Nested dicts of arrays."""
Metrics = Mapping[str, Array]
"""Name -> f32[]."""


class Prompts(struct.PyTreeNode):
    """The questions of a step, each held once whatever the number of samples."""

    tokens: Array  # i32[P, S], right-padded with anything
    length: Array  # i32[P], at least 1; positions at and past it are padding whatever token stands there
    draw: Array  # i32[P], number of the draw: with the seed it determines the prompt and all its sampling keys
    row: Array  # i32[P], line of the dataset where the answer and the metadata are
    label: Mapping[str, Array] = struct.field(default_factory=dict)  # name -> i32[P], for groupings; negative: none


class Rollouts(struct.PyTreeNode):
    """Completions sampled for `prompts`. Row n answers prompt ``prompt[n]`` as its sample number ``sample[n]``."""

    prompts: Prompts
    prompt: Array  # i32[N], index into `prompts`
    sample: Array  # i32[N], number of the sample within its prompt
    tokens: Array  # i32[N, T], right-padded with anything
    length: Array  # i32[N], tokens of the completion, the stop token included
    stopped: Array  # bool[N], True where the completion ended with a stop token, False where T cut it off
    mask: Array  # bool[N, T], True where the policy sampled the token: what trains
    logp: Array  # f32[N, T], under the distribution sampled from (temperature, then truncation, renormalised)
    logp_full: Array  # f32[N, T], over the full vocabulary at the training temperature
    version: Array  # i32[N], train step of the parameters that sampled the row
    experts: Array | None = None  # i32[L, N, T, top-k], experts behind the distribution of the token; -1: none


def row_axis(path: tuple[Any, ...]) -> int:
    """Which axis of the leaf at `path` of a record counts the rows: 1 for ``Rollouts.experts``, 0 for all others."""
    return int(bool(path) and path[-1] == jax.tree_util.GetAttrKey("experts"))


class TokenStats(struct.PyTreeNode):
    """What one forward pass of a policy says of the tokens of some rollouts. Only what was asked for is there."""

    logp: Array  # f32[N, T], log-probability of the token over the full vocabulary
    entropy: Array | None = None  # f32[N, T], nats, of the distribution the token was drawn from
    value: Array | None = None  # f32[N, T], critic
    sum_pi_squared: Array | None = None  # f32[N, T], sum over the vocabulary of the squared probability
    kl_full: Array | None = None  # f32[N, T], nats, exact KL to the reference over the full vocabulary
    hidden: Array | None = None  # f32[N, D], representation of the row
    replaced: Array | None = None  # f32[N, T], share of the choices of experts that are not those of the sampler


class Reward(struct.PyTreeNode):
    """Scores of the rows. A row with ``valid`` False could not be scored: it counts nowhere, which is not a zero."""

    outcome: Array  # f32[N], reward of the whole completion
    valid: Array  # bool[N], no default on purpose
    token: Array | None = None  # f32[N, T], reward of a token
    components: Mapping[str, Array] = struct.field(default_factory=dict)  # name -> f32[N], before weighting; nan: none
    step_end: Array | None = None  # bool[N, T], the token ends a step, whose reward `token` holds
    greedy: Array | None = None  # f32[N], outcome of the greedy completion of the row's prompt


class Seen(struct.PyTreeNode):
    """What policies say of sampled rows before anything is learned: only what the recipe asks for is there."""

    logp_old: Array | None = None  # f32[N, T], policy at collection; absent, `Rollouts.logp_full` stands for it
    logp_ref: Array | None = None  # f32[N, T], reference policy
    sum_pi_squared: Array | None = None  # f32[N, T], policy at collection, sum over the vocabulary
    value_old: Array | None = None  # f32[N, T], critic at collection


class Collected(struct.PyTreeNode):
    """Rollouts with everything known of them before advantages: the input of groupings and advantage strategies."""

    rollouts: Rollouts
    reward: Reward
    logp_old: Array  # f32[N, T], policy at collection, full vocabulary
    logp_ref: Array | None = None  # f32[N, T], reference policy
    value_old: Array | None = None  # f32[N, T], critic at collection
    sum_pi_squared: Array | None = None  # f32[N, T], policy at collection, sum over the vocabulary


class Batch(struct.PyTreeNode):
    """What an update reads: rollouts, advantages and the weights that turn per-token terms into a loss."""

    rollouts: Rollouts
    mask: Array  # bool[N, T], `rollouts.mask` without the rows that could not be scored or were deselected
    weight: Mapping[str, Array]  # description of an aggregation -> f32[N, T], computed over the whole batch
    advantage: Array  # f32[N, T], no gradient flows through it
    logp_old: Array  # f32[N, T], denominator of the importance ratio
    logp_behavior: Array  # f32[N, T], distribution really sampled from
    group: Array  # i32[N], i32[L, N] or i32[N, T]; negative where a row belongs to no group
    reward: Reward
    logp_ref: Array | None = None  # f32[N, T]
    returns: Array | None = None  # f32[N, T], targets of the critic
    value_old: Array | None = None  # f32[N, T]
    select: Mapping[str, Array] = struct.field(default_factory=dict)  # name -> bool[N, T] or f32[N, T], by `prepare`
    coef: Mapping[str, Array] = struct.field(default_factory=dict)  # name -> f32[], coefficients that change in a run


class TrainState(struct.PyTreeNode):
    """Everything a run needs to go on. There is no other state: no iterator, no generator, no clock."""

    params: Params  # those that are trained; others are frozen and no part of the state
    opt_state: Any  # optax state
    step: Array  # i32[], steps done in the current phase
    cursor: Array  # i32[], draws so far: the next prompt is draw number `cursor`
    skipped: Array  # i32[], optimiser updates refused in a row because something was not finite
    coef: Mapping[str, Array] = struct.field(default_factory=dict)  # name -> f32[]
    memory: Mapping[str, Array] = struct.field(default_factory=dict)  # small fixed-shape arrays of stateful parts
    reference: Params | None = None  # reference policy that moves, without what is frozen; None: there is none
