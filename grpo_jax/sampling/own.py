"""Sampling from a module of the user's own: by its `prefill` and `step`, else by reading the whole sequence again.

The second is correct for every module and slow: T tokens cost T passes over S + T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import arrange, own
from grpo_jax.models.own import OwnModel
from grpo_jax.sampling.generate import draw, row_keys
from grpo_jax.sampling.settings import Sampling
from grpo_jax.sharding import constrain
from grpo_jax.types import Array, Params, Prompts, Rollouts

Read = Callable[[Any, Array, Array], tuple[Array, Any]]
"""(memory, token i32[N], position i32[N]) -> logits f32[N, V] of the token behind it, memory."""


class _Loop(NamedTuple):
    """What changes while decoding. Finished rows go on being computed and are not recorded."""

    t: Array  # i32[]
    token: Array  # i32[N], the token to read
    done: Array  # bool[N]
    memory: Any  # what the model remembers of the rows
    tokens: Array  # i32[N, T]
    mask: Array  # bool[N, T]
    logp: Array  # f32[N, T]
    logp_full: Array  # f32[N, T]


def generate(
    params: Params,
    config: OwnModel,
    prompts: Prompts,
    sampling: Sampling,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    *,
    group_size: int,
    version: int | Array = 0,
) -> Rollouts:
    """Draws `group_size` completions of each prompt; arguments, keys and result are those of `generate.generate`."""
    chex.assert_rank(prompts.tokens, 2)
    own.check_length(config, prompts.tokens.shape[1] + sampling.max_tokens)
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; allowed are positive whole numbers of samples of a prompt")
    begin = _cached if config.has("prefill") else _reread
    memory, read = begin(params, config, prompts, group_size, sampling.max_tokens)
    memory = jax.tree.map(lambda x: constrain(x, mesh, ("rows", *(None,) * (x.ndim - 1))), memory)
    keys = row_keys(key, prompts.draw, group_size).reshape(-1)
    first, length = (jnp.repeat(x, group_size) for x in (arrange.last_token(prompts), prompts.length))
    shape = (first.shape[0], sampling.max_tokens)
    state = _Loop(
        t=jnp.zeros((), jnp.int32),
        token=constrain(first, mesh, ("rows",)),
        done=jnp.zeros(shape[:1], bool),
        memory=memory,
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        logp_full=jnp.zeros(shape, jnp.float32),
    )

    def going(state: _Loop) -> Array:
        return (state.t < sampling.max_tokens) & ~jnp.all(state.done)

    def step(state: _Loop) -> _Loop:
        logits, memory = read(state.memory, state.token, length - 1 + state.t)
        return _taken(state._replace(memory=memory), own.widened(logits), keys, sampling)

    return _record(prompts, jax.lax.while_loop(going, step, state), group_size, version)


def _taken(state: _Loop, logits: Array, keys: Array, sampling: Sampling) -> _Loop:
    """The state with a token drawn from logits f32[N, V] in every row that is not done."""
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, state.t)))(keys)
    token, logp, logp_full = (jnp.where(state.done, jnp.zeros_like(x), x) for x in draw(logits, u, sampling))
    stopping = jnp.zeros(token.shape, bool)
    for stop in sampling.stop:
        stopping |= token == stop

    def put(x: Array, column: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, column[:, None], state.t, axis=1)

    return state._replace(
        t=state.t + 1,
        token=token,
        done=state.done | stopping,
        tokens=put(state.tokens, token),
        mask=put(state.mask, ~state.done),
        logp=put(state.logp, logp),
        logp_full=put(state.logp_full, logp_full),
    )


def _reread(params: Params, config: OwnModel, prompts: Prompts, group: int, room: int) -> tuple[Array, Read]:
    """Memory: all tokens i32[N, S + T]. Every token is the end of a sequence that the module reads anew."""
    tokens = jnp.pad(jnp.repeat(prompts.tokens, group, axis=0), ((0, 0), (0, room)))

    def read(tokens: Array, token: Array, position: Array) -> tuple[Array, Array]:
        place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        tokens = jnp.where(place == position[:, None], token[:, None], tokens)
        valid = place <= position[:, None]
        method = "hidden" if config.has("hidden") else "__call__"
        found = own.call(params, config, method, jnp.where(valid, tokens, 0), valid)
        found = jnp.take_along_axis(found, position[:, None, None], axis=1)[:, 0]
        return own.call(params, config, "head", found) if config.has("hidden") else found, tokens

    return tokens, read


def _cached(params: Params, config: OwnModel, prompts: Prompts, group: int, room: int) -> tuple[Any, Read]:
    """Memory: the cache of the module, made of every prompt once and repeated for its rows."""
    cache = own.call(params, config, "prefill", *arrange.prefix(prompts), room)

    def read(cache: Any, token: Array, position: Array) -> tuple[Array, Any]:
        return own.call(params, config, "step", cache, token, position)

    return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), cache), read


def _record(prompts: Prompts, state: _Loop, group: int, version: int | Array) -> Rollouts:
    rows = jnp.arange(state.token.shape[0], dtype=jnp.int32)
    return Rollouts(
        prompts=prompts,
        prompt=rows // group,
        sample=rows % group,
        tokens=state.tokens,
        length=jnp.sum(state.mask, axis=1, dtype=jnp.int32),
        stopped=state.done,
        mask=state.mask,
        logp=state.logp,
        logp_full=state.logp_full,
        version=jnp.broadcast_to(jnp.asarray(version, jnp.int32), rows.shape),
    )
