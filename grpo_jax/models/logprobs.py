"""Log-probabilities of completions: the forward pass that training differentiates.

A prompt is encoded once for all of its completions, the last layer computes of it only what the completions attend to,
and logits exist for one chunk of completion tokens at a time: an array [N, T, V] never does.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import attention, critic, decoder, layers
from grpo_jax.models import replay as replays
from grpo_jax.models.arrange import arrange, prefix, shifted
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.own import OwnModel
from grpo_jax.sharding import BATCH_AXES, constrain
from grpo_jax.types import Array, Params, Prompts, Rollouts, TokenStats

WANTS = ("entropy", "hidden", "kl_full", "replaced", "sum_pi_squared", "value")
Carry = tuple[Array, Array | None]
"""Between layers: [A, D], and how many choices of experts have differed so far, f32[A]."""
_LOGITS = 1 << 18  # logits computed at a time, when `chunk` does not say


def logprobs(
    params: Params,
    config: ModelConfig,
    rollouts: Rollouts,
    *,
    temperature: float | Array,
    want: Sequence[str] = (),
    group_size: int | None = None,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    reference: Params | None = None,
    replay: bool = True,
    replay_reference: bool = False,
) -> TokenStats:
    """What the policy says of every token of `rollouts`, as f32[N, T] in the order of the rows.

    With ``p = softmax(logits / temperature)`` over the full vocabulary: ``logp = log p[token]``, and for each name in
    the static `want` ``entropy = -sum p log p``, ``sum_pi_squared = sum p^2``, ``kl_full = sum p (log p - log q)`` with
    q that of the parameters `reference`, through which no gradient flows, ``value``, what the critic gives the state
    before the token, for which no logits are made, ``replaced``, the share of the policy's own choices of experts that
    are not those of ``rollouts.experts``, or ``hidden`` f32[N, D], the mean over the tokens of the row of the normed
    output of the last layer. Everything is 0 past the end of a row.

    With `replay` the policy uses the choices of ``rollouts.experts``, where there are some, in place of its own, with
    the weights that its own router gives them; with `replay_reference` so does the reference, which is another policy
    and else chooses for itself, as do a critic's decoder and whoever reads the prompts.

    `group_size` is the largest number of rows of one prompt (default N / P); under jit, rows beyond it come out as nan.
    `chunk` is the number of tokens whose logits exist at a time on a device (default: 1024, or more for a small
    vocabulary); it changes no value. Gradients flow to `params`; forward mode needs ``config.backward`` plain.

    Raises ValueError for an unknown `want`, a temperature that is not positive, a ``kl_full`` without a `reference`, a
    ``value`` without a critic, ``replaced`` without recorded choices, or sizes that do not fit.
    """
    _check(config, rollouts, temperature, want, chunk)
    prompts = rollouts.prompts
    places = arrange(rollouts.prompt, prompts.tokens.shape[0], group_size)
    inputs, targets, read = shifted(rollouts, places)
    inputs, targets, read = (constrain(x, mesh, ("prompts", None, None)) for x in (inputs, targets, read))
    params = layers.cast(params, config)
    recorded = replays.placed(rollouts, places)
    how = {"recorded": recorded, "use": replay, "compare": "replaced" in want}
    x, replaced = routed_completions(params, config, prompts, inputs, mesh, **how)
    chunk = chunk or chunk_of(config)
    score = functools.partial(_score, params, config, temperature=temperature, want=want)
    read_of = x
    if "kl_full" in want and reference is not None:
        fixed = layers.cast(jax.lax.stop_gradient(reference), config)
        score = functools.partial(score, reference=fixed)
        others = recorded if replay_reference else None
        other = completions(fixed, config, prompts, inputs, mesh, recorded=others)
        read_of = jnp.concatenate([x, other], axis=-1)
    stats = chunked(score, read_of, targets, chunk, mesh)
    if "value" in want:
        own = critic.trunk(params)
        state = x if own is params else completions(own, config, prompts, inputs, mesh)
        stats["value"] = critic.value(params, state, config)
    if replaced is not None:
        stats["replaced"] = replaced
    stats = {name: places.restore(jnp.where(read, value, 0)) for name, value in stats.items()}
    if "hidden" in want:
        stats["hidden"] = places.restore(_mean_hidden(params, config, x, read))
    return TokenStats(**stats)


def chunk_of(config: ModelConfig | OwnModel) -> int:
    """Tokens whose logits are computed at a time where nobody says."""
    return max(1024, _LOGITS // config.vocab)


def completions(
    params: Params,
    config: ModelConfig,
    prompts: Prompts,
    inputs: Array,
    mesh: jax.sharding.Mesh | None,
    *,
    recorded: Array | None = None,
) -> Array:
    """Output [P, G, T, D] of the last layer at every completion token, from inputs i32[P, G, T].

    Experts recorded i32[L, P, G, T, k] take the place of those that the policy would choose.
    """
    return routed_completions(params, config, prompts, inputs, mesh, recorded=recorded)[0]


def routed_completions(
    params: Params,
    config: ModelConfig,
    prompts: Prompts,
    inputs: Array,
    mesh: jax.sharding.Mesh | None,
    *,
    recorded: Array | None,
    use: bool = True,
    compare: bool = False,
) -> tuple[Array, Array | None]:
    """`completions`, and, to `compare`, the share f32[P, G, T] of the policy's own choices that are not recorded ones.

    Without `use` the policy keeps its own choices.
    """
    count, group, width = inputs.shape
    before, seen = prefix(prompts)
    size = before.shape[1]
    position, own_position = _positions(prompts, inputs, size)
    tokens = jnp.concatenate([before, inputs.reshape(count, -1)], axis=1)
    x = constrain(layers.embed(params, tokens.reshape(-1), position.reshape(-1), config), mesh, ("prompts", None))
    rotations = layers.rotations(position.reshape(-1), config, x.dtype)
    own_rotations = layers.rotations(own_position.reshape(-1), config, x.dtype)
    params = replays.attach(params, recorded, size)
    differs = jnp.zeros(x.shape[0], jnp.float32) if compare else None
    close = functools.partial(_close, config=config, use=use, mesh=mesh)

    def apart(x: Array) -> tuple[Array, Array]:
        """[P (S + G T), ...] -> [P, S, ...] and [P, G, T, ...]."""
        x = x.reshape(count, -1, *x.shape[1:])
        return x[:, :size], x[:, size:].reshape(count, group, width, *x.shape[2:])

    def own(x: Array) -> Array:
        """[P (S + G T), ...] -> [P G T, ...]."""
        return apart(x)[1].reshape(-1, *x.shape[1:])

    def keys(layer: Mapping[str, Array], normed: Array, rotation) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        key, value = (apart(x) for x in layers.key_value(layer, normed, rotation, config))
        return (key[0], value[0]), (key[1], value[1])

    def body(carry: Carry, layer: Mapping[str, Array], window: attention.Window) -> Carry:
        x, differs = carry
        normed, rotation = layers.rms_norm(x, layer["attention_norm"], config), rotations(window)
        before_kv, own_kv = keys(layer, normed, rotation)
        before_query, own_query = apart(layers.query(layer, normed, rotation, config))
        found = attention.attend_group(own_query, before_kv, own_kv, seen, config, window)
        found = found.reshape(count, group * width, *found.shape[3:])
        before = attention.attend_prefix(before_query, *before_kv, seen, config, window)
        found = jnp.concatenate([before, found], axis=1)
        return close(layer, (x, differs), found.reshape(-1, *found.shape[2:]), layer.get(replays.RECORDED))

    def last(carry: Carry, layer: Mapping[str, Array], window: attention.Window) -> Carry:
        x, differs = carry
        normed = layers.rms_norm(x, layer["attention_norm"], config)
        before_kv, own_kv = keys(layer, normed, rotations(window))
        x, normed, differs, recorded = jax.tree.map(own, (x, normed, differs, layer.get(replays.RECORDED)))
        query = layers.query(layer, normed, own_rotations(window), config).reshape(*inputs.shape, config.heads, -1)
        found = attention.attend_group(query, before_kv, own_kv, seen, config, window)
        return close(layer, (x, differs), found.reshape(-1, *found.shape[3:]), recorded)

    x, differs = decoder.fold(body, (x, differs), params, config, last=last)
    x = constrain(x.reshape(count, group, width, -1), mesh, ("prompts", None, None, None))
    return x, replays.share(differs, config, inputs.shape)


def _positions(prompts: Prompts, inputs: Array, size: int) -> tuple[Array, Array]:
    """Positions of the first `size` tokens of the prompts and behind them those of inputs i32[P, G, T], and these.

    i32[P, size + G T] and i32[P, G T].
    """
    count, _, width = inputs.shape
    own = prompts.length[:, None, None] - 1 + jnp.arange(width, dtype=jnp.int32)[None, None]
    own = jnp.broadcast_to(own, inputs.shape).reshape(count, -1)
    before = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32)[None], (count, size))
    return jnp.concatenate([before, own], axis=1), own


def _close(
    layer: Mapping[str, Array],
    carry: Carry,
    found: Array,
    recorded: Array | None,
    *,
    config: ModelConfig,
    use: bool,
    mesh: jax.sharding.Mesh | None,
) -> Carry:
    """`layers.close`, and how many of the choices of experts so far are not recorded i32[A, k]; these in `use`."""
    given = recorded if use else None
    x, own = layers.close_routed(layer, carry[0], found, config, recorded=given, mesh=mesh)
    return constrain(x, mesh, ("prompts", None)), replays.counted(carry[1], own, recorded)


def _score(
    params: Params, config: ModelConfig, x: Array, targets: Array, *, temperature, want, reference: Params | None = None
) -> dict[str, Array]:
    """`logp` and the per-token arrays of `want`, f32[...], of targets i32[...] after x [..., D].

    With a `reference`, the output of its last layer stands behind that of the policy in x [..., 2 D].
    """
    if reference is None:
        return token_statistics(layers.unembed(params, x, config), targets, temperature=temperature, want=want)
    own, other = jnp.split(x, 2, axis=-1)
    logits, fixed = layers.unembed(params, own, config), layers.unembed(reference, other, config)
    return token_statistics(logits, targets, temperature=temperature, want=want, reference=fixed)


def token_statistics(
    logits: Array,
    targets: Array,
    *,
    temperature: float | Array = 1.0,
    want: Sequence[str] = (),
    reference: Array | None = None,
) -> dict[str, Array]:
    """What logits f[..., V] say of targets i32[...]: `logp` and the per-token arrays of `want` -> name -> f[...].

    `reference` f[..., V] are the logits of the other policy of ``kl_full``; the formulas are those of `logprobs`. They
    are computed in the dtype of the logits; what comes out is float32 at least.
    """
    stats = _token_statistics(logits, targets, temperature, want, reference)
    return {name: value.astype(layers.accumulator(value.dtype)) for name, value in stats.items()}


def _token_statistics(
    logits: Array, targets: Array, temperature: float | Array, want: Sequence[str], reference: Array | None
) -> dict[str, Array]:
    """`token_statistics` in the dtype of the logits."""
    logits = logits / jnp.asarray(temperature, logits.dtype)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    stats = {"logp": jnp.sum(jnp.where(chosen, logits, 0), axis=-1) - normaliser}
    if not {"entropy", "kl_full", "sum_pi_squared"} & set(want):
        return stats
    p = jnp.exp(logits - normaliser[..., None])
    if "entropy" in want:
        stats["entropy"] = normaliser - jnp.sum(p * logits, axis=-1)
    if "sum_pi_squared" in want:
        stats["sum_pi_squared"] = jnp.sum(p * p, axis=-1)
    if "kl_full" in want:
        if reference is None:
            raise ValueError("want has kl_full but reference is None; allowed is another policy: pass the reference's")
        other = reference / jnp.asarray(temperature, reference.dtype)
        shift = jax.nn.logsumexp(other, axis=-1) - normaliser
        stats["kl_full"] = jnp.sum(p * (logits - other), axis=-1) + shift
    return stats


def chunked(score: Callable, x: Array, targets: Array, chunk: int, mesh) -> dict[str, Array]:
    """`score` of x [P, G, T, D] and targets i32[P, G, T], on every shard `chunk` tokens at a time.

    The backward pass computes the logits of a chunk again instead of keeping them.
    """
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    count = targets.size // shards
    blocks = -(-count // chunk)
    score = jax.checkpoint(score)
    if blocks == 1:
        stats = score(x.reshape(targets.size, -1), targets.reshape(-1))
        return jax.tree.map(lambda y: y.reshape(targets.shape), stats)
    spare = blocks * chunk - count
    rows = jnp.pad(x.reshape(shards, count, -1), ((0, 0), (0, spare), (0, 0))).reshape(shards, blocks, chunk, -1)
    flat = jnp.pad(targets.reshape(shards, count), ((0, 0), (0, spare))).reshape(shards, blocks, chunk)
    stats = jax.lax.map(lambda block: score(*block), (rows.swapaxes(0, 1), flat.swapaxes(0, 1)))
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(shards, -1)[:, :count].reshape(targets.shape), stats)


def _mean_hidden(params: Params, config: ModelConfig, x: Array, read: Array) -> Array:
    """f32[P, G, D], mean of the normed x [P, G, T, D] where read bool[P, G, T]; 0 for an empty row."""
    normed = layers.rms_norm(x, params["norm"], config)
    normed = normed.astype(layers.accumulator(x.dtype))
    total = jnp.sum(jnp.where(read[..., None], normed, 0), axis=2)
    return total / jnp.maximum(jnp.sum(read, axis=2, dtype=total.dtype), 1)[..., None]


def _check(config: ModelConfig, rollouts: Rollouts, temperature, want: Sequence[str], chunk: int | None) -> None:
    chex.assert_rank([rollouts.tokens, rollouts.prompts.tokens], 2)
    decoder.check_length(config, rollouts.prompts.tokens.shape[1] + rollouts.tokens.shape[1] - 1)
    unknown = sorted(set(want) - set(WANTS))
    if unknown:
        raise ValueError(f"want has {', '.join(unknown)}, which this model cannot tell; allowed are {', '.join(WANTS)}")
    if "replaced" in want and rollouts.experts is None:
        raise ValueError("want has replaced, but rollouts.experts is None; allowed are rows of a mixture: sample them")
    if "value" in want and config.critic is None:
        raise ValueError("want has value, but ModelConfig.critic is None; allowed are head, tower: give the model one")
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature is {temperature}; allowed is more than 0: take 1.0 for greedy rows")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; allowed are positive numbers of tokens, or None")
