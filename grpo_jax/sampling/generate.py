"""Sampling, the reference: a prompt is encoded once, then all samples of all prompts advance by a token at a time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import arrange, attention, decoder, experts, layers, parts, table
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import without_critic
from grpo_jax.sampling import cache as caches
from grpo_jax.sampling import logits as distribution
from grpo_jax.sampling.settings import Sampling
from grpo_jax.sharding import ROLLOUT_RULES, constrain, constrain_tree
from grpo_jax.types import Array, Params, Prompts, Rollouts


class _Fixed(NamedTuple):
    """What does not change while decoding."""

    params: Mapping
    prefixes: tuple[caches.Prefix, ...]
    seen: Array  # bool[P, S-1]
    length: Array  # i32[P]
    keys: Array  # key[P, G], one a row


class _Loop(NamedTuple):
    """What does. Finished rows go on being computed and are not recorded."""

    t: Array  # i32[]
    token: Array  # i32[P, G], the token to read
    done: Array  # bool[P, G]
    caches: tuple[caches.Cache, ...]
    tokens: Array  # i32[P, G, T]
    mask: Array  # bool[P, G, T]
    logp: Array  # f32[P, G, T]
    logp_full: Array  # f32[P, G, T]
    experts: Array | None  # i32[L, P, G, T, k], of a mixture


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Prompts,
    sampling: Sampling,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    *,
    group_size: int,
    version: int | Array = 0,
) -> Rollouts:
    """Draws `group_size` completions of each prompt: row ``n = p * G + g`` is sample g of prompt p.

    Token t of a row is drawn with the key ``fold_in(row key, t)``; the row key is `key` folded with the draw number
    of the prompt, the number of the sample and turn 0: it depends on nothing else, so a row comes out the same in
    another batch. Decoding stops when all rows have; after its stop token a row holds 0 and its mask is False.

    ``logp_full`` is over the full vocabulary at the temperature (at 1 when the temperature is 0); ``logp`` under the
    truncated and renormalised distribution really sampled from, 0 at temperature 0. `version` is the train step of
    `params`. Of a mixture ``experts`` are those that the token before went through, whose output the token was drawn
    from; -1 in layers without experts and past the end of a row.

    Raises ValueError for a `group_size` below 1 and for sequences longer than the model's table of positions.
    """
    chex.assert_rank(prompts.tokens, 2)
    decoder.check_length(config, prompts.tokens.shape[1] + sampling.max_tokens - 1)
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; allowed are positive whole numbers of samples of a prompt")
    weights = _rollout_weights(params, config, mesh)
    seen, prefixes = _prefill(weights, config, prompts, mesh)
    fixed = _Fixed(weights, prefixes, seen, prompts.length, row_keys(key, prompts.draw, group_size))
    state = _start(prompts, config, sampling, prefixes, group_size)
    for end in _widths(sampling):
        state = state._replace(caches=tuple(caches.grow(cache, end) for cache in state.caches))
        state = _decode(fixed, config, sampling, state, end, mesh)
    return _record(prompts, state, version)


def row_keys(key: Array, draw: Array, group_size: int, turn: int = 0) -> Array:
    """key[P, G] of every sample of the prompts drawn as number draw i32[P]."""
    sample = jnp.arange(group_size, dtype=jnp.int32)

    def one(draw: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, draw), sample), turn)

    return jax.vmap(lambda draw: jax.vmap(lambda sample: one(draw, sample))(sample))(draw)


def _rollout_weights(params: Params, config: ModelConfig, mesh) -> Mapping:
    """Parameters as decoding reads them: cast and gathered once, a dict a layer, the output matrix as [D, V]."""
    weights = without_critic(params)
    names = parts.like(table.axes(config), weights)
    weights = constrain_tree(layers.cast(weights, config), mesh, names, ROLLOUT_RULES)
    weights = dict(table.unstack(weights))
    weights.setdefault("head", weights["embed"].T)
    return weights


def _prefill(weights: Mapping, config: ModelConfig, prompts: Prompts, mesh) -> tuple[Array, tuple[caches.Prefix, ...]]:
    """Mask bool[P, S-1] and keys and values of the prompts, all but the last token of each."""
    tokens, seen = arrange.prefix(prompts)
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    flat = position.reshape(-1)
    x = constrain(layers.embed(weights, tokens.reshape(-1), flat, config), mesh, ("prompts", None))
    rotations = layers.rotations(flat, config, x.dtype)
    prefixes = []
    for i in range(config.layers):
        layer, window, rotation = weights["layers"][str(i)], config.window(i), rotations(config.window(i))
        normed = layers.rms_norm(x, layer["attention_norm"], config)
        key, value = (_split(y, tokens.shape) for y in layers.key_value(layer, normed, rotation, config))
        prefixes.append(caches.prefix(key, value))
        if i + 1 < config.layers:
            query = _split(layers.query(layer, normed, rotation, config), tokens.shape)
            found = attention.attend_prefix(query, key, value, seen, config, window)
            x = layers.close(layer, x, found.reshape(-1, *found.shape[2:]), config, mesh)
    return seen, tuple(prefixes)


def _start(
    prompts: Prompts, config: ModelConfig, sampling: Sampling, prefixes: tuple[caches.Prefix, ...], group: int
) -> _Loop:
    count = prompts.tokens.shape[0]
    shape = (count, group, sampling.max_tokens)
    choices = (config.layers, *shape, config.experts_per_token)
    token = jnp.broadcast_to(arrange.last_token(prompts)[:, None], (count, group))
    return _Loop(
        t=jnp.zeros((), jnp.int32),
        token=token,
        done=jnp.zeros((count, group), bool),
        caches=tuple(caches.empty(prefix, group, 0) for prefix in prefixes),
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        logp_full=jnp.zeros(shape, jnp.float32),
        experts=jnp.full(choices, experts.NONE, jnp.int32) if config.experts else None,
    )


def _widths(sampling: Sampling) -> list[int]:
    """Widths of the cache, one a loop: multiples of `cache_chunk`, then T."""
    return [*range(sampling.cache_chunk, sampling.max_tokens, sampling.cache_chunk), sampling.max_tokens]


def _decode(fixed: _Fixed, config: ModelConfig, sampling: Sampling, state: _Loop, end: int, mesh) -> _Loop:
    """Advances until every row is done or `end` tokens are."""

    def going(state: _Loop) -> Array:
        return (state.t < end) & ~jnp.all(state.done)

    def step(state: _Loop) -> _Loop:
        logits, new, chosen = _read(fixed, config, state, mesh)
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, state.t)))(fixed.keys.reshape(-1))
        shape = state.token.shape
        drawn = (x.reshape(shape) for x in draw(logits, u, sampling))
        token, logp, logp_full = (jnp.where(state.done, jnp.zeros_like(x), x) for x in drawn)
        stopping = jnp.zeros(shape, bool)
        for stop in sampling.stop:
            stopping |= token == stop
        return _Loop(
            t=state.t + 1,
            token=token,
            done=state.done | stopping,
            caches=new,
            tokens=_put(state.tokens, token, state.t),
            mask=_put(state.mask, ~state.done, state.t),
            logp=_put(state.logp, logp, state.t),
            logp_full=_put(state.logp_full, logp_full, state.t),
            experts=_put_choices(state.experts, chosen, state.done, state.t),
        )

    return jax.lax.while_loop(going, step, state)


def _read(
    fixed: _Fixed, config: ModelConfig, state: _Loop, mesh
) -> tuple[Array, tuple[caches.Cache, ...], Array | None]:
    """Logits f32[P * G, V] after the current token of every row, the caches with it, and its experts."""
    shape = state.token.shape
    position = jnp.broadcast_to(fixed.length[:, None] - 1 + state.t, shape).reshape(-1)
    x = constrain(layers.embed(fixed.params, state.token.reshape(-1), position, config), mesh, ("prompts", None))
    rotations = layers.rotations(position, config, x.dtype)
    new, chosen = [], []
    for i in range(config.layers):
        layer, window, rotation = fixed.params["layers"][str(i)], config.window(i), rotations(config.window(i))
        normed = layers.rms_norm(x, layer["attention_norm"], config)
        key, value = (_split(y, shape) for y in layers.key_value(layer, normed, rotation, config))
        new.append(_constrain(caches.write(state.caches[i], key, value, state.t), mesh))
        query = _split(layers.query(layer, normed, rotation, config), shape)
        limits = {"cap": config.attention_cap, "window": window}
        found = caches.attend(query, fixed.prefixes[i], fixed.seen, new[i], state.t, **limits)
        x, own = layers.close_routed(layer, x, found.reshape(-1, *found.shape[2:]), config, mesh=mesh)
        chosen.append(own)
    return layers.unembed(fixed.params, x, config), tuple(new), _choices(chosen, shape, config)


def draw(logits: Array, u: Array, sampling: Sampling) -> tuple[Array, Array, Array]:
    """Token i32[N], logp and logp_full f32[N] from logits f32[N, V] and uniforms u f32[N].

    A temperature that is a number decides here whether anything random is compiled; a traced one decides at run time.
    """
    temperature = sampling.temperature
    static = isinstance(temperature, int | float)
    if static and temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return token, jnp.zeros_like(u), distribution.log_probs(logits, token)[1]
    greedy = None if static else jnp.asarray(temperature, logits.dtype) <= 0
    if greedy is None:
        logits = logits / temperature
    else:
        logits = logits / jnp.where(greedy, 1, jnp.asarray(temperature, logits.dtype))
    cuts = {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p}
    keep = distribution.truncate(logits, **cuts) if sampling.truncates else None
    token = distribution.sample(logits, u, keep)
    if greedy is not None:
        token = jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), token)
    logp, logp_full = distribution.log_probs(logits, token, keep)
    return token, logp if greedy is None else jnp.where(greedy, jnp.zeros_like(logp), logp), logp_full


def _split(x: Array, shape: tuple[int, ...]) -> Array:
    """[A B, heads, C] -> [A, B, heads, C]."""
    return x.reshape(*shape, *x.shape[1:])


def _put(x: Array, column: Array, t: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, column[:, :, None], t, axis=2)


def _put_choices(x: Array | None, chosen: Array | None, done: Array, t: Array) -> Array | None:
    if x is None or chosen is None:
        return None
    chosen = jnp.where(done[None, :, :, None], experts.NONE, chosen)
    return jax.lax.dynamic_update_slice_in_dim(x, chosen[:, :, :, None], t, axis=3)


def _choices(chosen: Sequence[Array | None], shape: tuple[int, ...], config: ModelConfig) -> Array | None:
    """i32[L, P, G, k] of the choices [P * G, k] of every layer; of layers without experts there are none."""
    if not config.experts:
        return None
    none = jnp.full((*shape, config.experts_per_token), experts.NONE, jnp.int32)
    return jnp.stack([none if own is None else own.reshape(none.shape) for own in chosen])


def _constrain(cache: caches.Cache, mesh) -> caches.Cache:
    return jax.tree.map(lambda x: constrain(x, mesh, ("prompts", "kv_heads", None, None, None)), cache)


def _record(prompts: Prompts, state: _Loop, version: int | Array) -> Rollouts:
    """The rows of the loop, prompt by prompt."""
    count, group, _ = state.tokens.shape
    rows = jnp.arange(count * group, dtype=jnp.int32)
    tokens, mask, logp, logp_full = (
        x.reshape(count * group, -1) for x in (state.tokens, state.mask, state.logp, state.logp_full)
    )
    return Rollouts(
        prompts=prompts,
        prompt=rows // group,
        sample=rows % group,
        tokens=tokens,
        length=jnp.sum(mask, axis=1, dtype=jnp.int32),
        stopped=state.done.reshape(-1),
        mask=mask,
        logp=logp,
        logp_full=logp_full,
        version=jnp.broadcast_to(jnp.asarray(version, jnp.int32), rows.shape),
        experts=None if state.experts is None else state.experts.reshape(-1, *mask.shape, state.experts.shape[-1]),
    )
