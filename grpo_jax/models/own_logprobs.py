"""Log-probabilities of completions under a module of the user's own: what `logprobs` is for the decoder.

Every row is read whole, its prompt included. Logits exist for one block of rows, or of tokens where the module can tell
its last hidden layer, at a time, and the backward pass makes them again.
"""

import functools
import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import own
from grpo_jax.models.logprobs import chunk_of, chunked, token_statistics
from grpo_jax.models.own import OwnModel
from grpo_jax.sharding import BATCH_AXES, constrain
from grpo_jax.types import Array, Params, Rollouts, TokenStats

WANTS = ("entropy", "kl_full", "sum_pi_squared")


def whole(rollouts: Rollouts) -> tuple[Array, Array, Array]:
    """Prompt and completion of every row behind one another: tokens i32[N, S + T], valid bool[N, S + T], begin i32[N].

    ``begin`` is the place of the last token of the prompt, whose logits are those of the first one of the completion.
    """
    prompts, width = rollouts.prompts, rollouts.tokens.shape[1]
    size = prompts.tokens.shape[1]
    length = prompts.length[rollouts.prompt]
    place = jnp.arange(size + width, dtype=jnp.int32)[None]
    own_place = place - length[:, None]
    before = jnp.pad(prompts.tokens[rollouts.prompt], ((0, 0), (0, width)))
    behind = jnp.take_along_axis(rollouts.tokens, jnp.clip(own_place, 0, width - 1), axis=1)
    valid = own_place < rollouts.length[:, None]
    return jnp.where(valid, jnp.where(own_place < 0, before, behind), 0), valid, length - 1


def logprobs(
    params: Params,
    config: OwnModel,
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
    """What the policy says of every token of `rollouts`, f32[N, T]; meaning and arguments are those of `logprobs`.

    `group_size`, `replay` and `replay_reference` decide nothing here. Raises ValueError for a `want` that a module
    cannot tell, and for sequences that are longer than it reads.
    """
    del group_size, replay, replay_reference  # every row is read whole, and there are no experts
    _check(config, rollouts, want, reference)
    tokens, valid, begin = (constrain(x, mesh, ("rows", None)[: x.ndim]) for x in whole(rollouts))
    width = rollouts.tokens.shape[1]
    read = jnp.arange(width, dtype=jnp.int32)[None] < rollouts.length[:, None]
    targets = jnp.where(read, rollouts.tokens, 0)
    both = [params] if "kl_full" not in want or reference is None else [params, jax.lax.stop_gradient(reference)]
    say = functools.partial(token_statistics, temperature=temperature, want=want)
    if config.has("hidden"):
        states = [_cut(own.call(p, config, "hidden", tokens, valid), begin, width) for p in both]
        sizes = [state.shape[-1] for state in states]

        def score(x: Array, targets: Array) -> dict[str, Array]:
            parts = jnp.split(x, [sizes[0]], axis=-1)[: len(both)]
            logits = [own.widened(own.call(p, config, "head", part)) for p, part in zip(both, parts, strict=True)]
            return say(logits[0], targets, reference=logits[-1])

        x = jnp.concatenate(states, axis=-1)[:, None]
        stats = chunked(score, x, targets[:, None], chunk or chunk_of(config), mesh)
        stats = {name: value[:, 0] for name, value in stats.items()}
    else:

        def score_rows(tokens: Array, valid: Array, begin: Array, targets: Array) -> dict[str, Array]:
            logits = [_cut(own.forward(p, config, tokens, valid), begin, width) for p in both]
            return say(logits[0], targets, reference=logits[-1])

        most = max(1, (chunk or chunk_of(config)) // tokens.shape[1])
        stats = _blocked(score_rows, (tokens, valid, begin, targets), most, mesh)
    return TokenStats(**{name: jnp.where(read, value, 0) for name, value in stats.items()})


def _cut(x: Array, begin: Array, width: int) -> Array:
    """[N, S + T, ...] at the places ``begin .. begin + width - 1`` of every row: [N, T, ...]."""
    place = begin[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.take_along_axis(x, place[..., None], axis=1, mode="clip")


def _blocked(score: Callable, rows: tuple[Array, ...], most: int, mesh) -> dict[str, Array]:
    """`score` of arrays [N, ...], on every shard at most `most` rows at a time: name -> [N, ...]."""
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    count = rows[0].shape[0] // shards
    blocks = -(-count // most)
    score = jax.checkpoint(score)
    if blocks == 1:
        return score(*rows)
    size = -(-count // blocks)
    spare = blocks * size - count

    def cut(x: Array) -> Array:
        x = jnp.pad(x.reshape(shards, count, *x.shape[1:]), ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(shards, blocks, size, *x.shape[2:]).swapaxes(0, 1).reshape(blocks, -1, *x.shape[2:])

    found = jax.lax.map(lambda block: score(*block), tuple(cut(x) for x in rows))

    def joined(y: Array) -> Array:
        y = y.reshape(blocks, shards, size, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(shards, blocks * size, *y.shape[3:])[:, :count].reshape(-1, *y.shape[3:])

    return jax.tree.map(joined, found)


def _check(config: OwnModel, rollouts: Rollouts, want: Sequence[str], reference: Params | None) -> None:
    chex.assert_rank([rollouts.tokens, rollouts.prompts.tokens], 2)
    own.check_length(config, rollouts.prompts.tokens.shape[1] + rollouts.tokens.shape[1])
    unknown = sorted(set(want) - set(WANTS))
    if unknown:
        raise ValueError(
            f"want: got {', '.join(unknown)}, which a module of one's own cannot tell; allowed are {', '.join(WANTS)}:"
            " take a recipe without it, or a ModelConfig"
        )
    if "kl_full" in want and reference is None:
        raise ValueError("want has kl_full but reference is None; allowed is another policy: pass the reference's")
