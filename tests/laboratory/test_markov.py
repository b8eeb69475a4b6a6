"""Every completion is there once, with the states that its tokens are drawn from."""

import numpy as np
import pytest

from grpo_jax import laboratory as lab


def words(listed: lab.Completions) -> set[tuple[int, ...]]:
    rows = zip(np.asarray(listed.tokens).tolist(), np.asarray(listed.length).tolist(), strict=True)
    return {tuple(row[:length]) for row, length in rows}


def test_all_completions_of_two_tokens_and_length_two():
    listed = lab.sentences(vocab=2, length=2)
    assert words(listed) == {(0,), (1, 0), (1, 1)} and listed.tokens.shape[0] == 3
    ends = dict(zip(map(tuple, np.asarray(listed.tokens).tolist()), np.asarray(listed.stopped).tolist(), strict=True))
    assert ends == {(0, 0): True, (1, 0): True, (1, 1): False}


def test_their_number_is_that_of_the_stopped_and_of_the_cut_off():
    # V = 3: 2^(n-1) stop at token n, and the 2^3 beginnings without a stop token of length 3 are cut off.
    assert len(words(lab.sentences(vocab=3, length=3, stop=2))) == 1 + 2 + 4 + 8


@pytest.mark.parametrize(("order", "states"), [(1, 1 + 2), (2, 1 + 2 + 4), (5, 1 + 2 + 4)])
def test_a_state_is_the_tokens_that_the_policy_sees(order: int, states: int):
    listed = lab.sentences(vocab=3, length=3, order=order)
    assert listed.allowed.shape == (states, 3)
    tokens, state = np.asarray(listed.tokens), np.asarray(listed.state)
    seen: dict[int, set] = {}
    for row in range(len(tokens)):
        for t in range(int(listed.length[row])):
            seen.setdefault(int(state[row, t]), set()).add(tuple(tokens[row, max(0, t - order) : t].tolist()))
    assert sorted(seen) == list(range(states)) and all(len(contexts) == 1 for contexts in seen.values())


def test_a_grammar_leaves_out_what_may_not_follow():
    listed = lab.sentences(vocab=3, length=3, grammar={(): (1,), (1,): (0, 2)})
    assert words(listed) == {(1, 0), (1, 2, 0), (1, 2, 1), (1, 2, 2)}
    assert np.asarray(listed.allowed[0]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"vocab": 1, "length": 2}, "vocab=1"),
        ({"vocab": 3, "length": 0}, "length=0"),
        ({"vocab": 3, "length": 2, "stop": 3}, "stop=3"),
        ({"vocab": 3, "length": 2, "order": 0}, "order=0"),
        ({"vocab": 3, "length": 2, "grammar": {(): ()}}, "at least one"),
        ({"vocab": 3, "length": 2, "grammar": {(): (3,)}}, "from 0 to 2"),
        ({"vocab": 10, "length": 9}, "more than 100000"),
    ],
)
def test_what_cannot_be_listed_is_refused(fields: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        lab.sentences(**fields)
