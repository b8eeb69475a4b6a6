"""Short language models over a small vocabulary with a stop token: completions of unequal length, states shared."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from grpo_jax.laboratory.truth import Completions

Context = tuple[int, ...]
LIMIT = 100_000


def sentences(
    *,
    vocab: int,
    length: int,
    stop: int = 0,
    order: int = 1,
    grammar: Mapping[Context, Sequence[int]] | None = None,
) -> Completions:
    """All completions of a model that ends at token `stop`, or is cut off after `length` tokens.

    Args:
        vocab: number of tokens.
        length: the most tokens of a completion, the stop token included.
        stop: the token that ends a completion.
        order: how many tokens before it the next one depends on. 1 is a Markov chain; ``length - 1`` gives every
            beginning a state of its own, and the policy is then as general as can be.
        grammar: the tokens that may follow a context, by the last `order` tokens; what is not named may be followed
            by everything.

    Raises:
        ValueError: sizes without a completion, a context that nothing may follow, or more than 100,000 completions.
    """
    if vocab < 2 or length < 1 or order < 1 or not 0 <= stop < vocab:
        raise ValueError(
            f"sentences: got vocab={vocab}, length={length}, order={order}, stop={stop}; allowed are vocab of at least"
            " 2, length and order of at least 1, and a stop token below vocab: change the one that is not"
        )
    grammar = dict(grammar or {})
    states: dict[Context, int] = {}
    unfinished: list[Context] = [()]
    listed: list[Context] = []
    while unfinished:
        before = unfinished.pop()
        context = before[-order:]
        states.setdefault(context, len(states))
        for words in ((*before, token) for token in _following(context, vocab, grammar)):
            (listed if words[-1] == stop or len(words) == length else unfinished).append(words)
        if len(listed) + len(unfinished) > LIMIT:
            raise ValueError(f"sentences: got more than {LIMIT} completions: take a smaller vocab or length")
    tokens, state = (np.zeros((len(listed), length), np.int32) for _ in range(2))
    for row, words in enumerate(listed):
        tokens[row, : len(words)] = words
        state[row, : len(words)] = [states[words[:t][-order:]] for t in range(len(words))]
    allowed = np.zeros((len(states), vocab), bool)
    for context, number in states.items():
        allowed[number, list(_following(context, vocab, grammar))] = True
    return Completions(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray([len(words) for words in listed], jnp.int32),
        stopped=jnp.asarray([words[-1] == stop for words in listed]),
        state=jnp.asarray(state),
        allowed=jnp.asarray(allowed),
    )


def _following(context: Context, vocab: int, grammar: Mapping[Context, Sequence[int]]) -> Sequence[int]:
    """Tokens that may follow `context`."""
    tokens = grammar.get(context, range(vocab))
    if not tokens or not all(0 <= token < vocab for token in tokens):
        raise ValueError(
            f"grammar[{context}]: got {list(tokens)}, allowed are tokens from 0 to {vocab - 1}, at least one"
        )
    return tokens
