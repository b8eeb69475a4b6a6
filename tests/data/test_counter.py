import hashlib

import numpy as np
import pytest

from grpo_jax.data.counter import below, hashed, mix, permuted, row_hash, text_hash, unit

WORD = 2**64


def plain_mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def plain_hash(*words: int) -> int:
    state = 0
    for word in words:
        state = plain_mix((state + 0x9E3779B97F4A7C15) % WORD ^ word % WORD)
    return state


def test_mix_gives_the_published_outputs_of_splitmix64():
    # The generator adds the golden gamma to its state and mixes; these are its first outputs from state 1234567.
    state = np.array([1234567 + 0x9E3779B97F4A7C15 * n for n in (1, 2, 3)], object) % WORD
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(state.astype(np.uint64)).tolist() == published


def test_hashed_equals_the_same_sum_in_python_integers():
    draws = np.array([0, 1, 2**31 - 1])
    for seed in (0, -1, 7, 2**64 + 7):
        assert hashed(seed, draws, 5).tolist() == [plain_hash(seed, int(d), 5) for d in draws]


def test_the_order_of_words_matters_and_the_batch_does_not():
    draws = np.arange(100)
    assert hashed(1, 2)[0] != hashed(2, 1)[0]
    assert hashed(3, draws[::-1]).tolist() == hashed(3, draws).tolist()[::-1]
    assert hashed(3, draws[17:18])[0] == hashed(3, draws)[17]


def test_below_takes_the_upper_bits_and_is_uniform():
    # bound * (upper 32 bits) / 2^32: half of the range gives half of the bound.
    assert below(np.array([0, 1 << 63, WORD - 1], np.uint64), 10).tolist() == [0, 5, 9]
    counts = np.bincount(below(hashed(0, np.arange(60_000)), 6), minlength=6)
    # 10,000 expected, standard deviation sqrt(60000 * 1/6 * 5/6) = 91.3: five of them are 456.
    assert abs(counts - 10_000).max() < 456


def test_unit_lies_in_the_half_open_interval():
    assert unit(np.array([0, 1 << 63, WORD - 1], np.uint64)).tolist() == [0.0, 0.5, 1.0 - 2.0**-53]


def test_neighbouring_draws_and_seeds_are_uncorrelated():
    values = np.stack([unit(hashed(seed, np.arange(20_000))) for seed in (0, 1)])
    pairs = [(values[0], values[1]), (values[0][1:], values[0][:-1])]
    # The standard error of a correlation over 20,000 pairs is 0.0071.
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 5 * 0.0071 for a, b in pairs)


def test_row_hash_reads_the_entries_before_the_padding_only():
    rows = np.array([[3, 1, -1, -1], [3, 1, 0, -1], [1, 3, -1, -1]])
    hashes = row_hash(rows)
    assert len(set(hashes.tolist())) == 3
    assert row_hash(rows[:1, :2])[0] == hashes[0]


def test_text_hash_is_fixed_for_good():
    digest = hashlib.blake2b(b"abc", digest_size=8).hexdigest()
    assert f"{text_hash('abc'):016x}" == "".join(digest[i : i + 2] for i in range(14, -1, -2))
    assert text_hash("abc") != text_hash("abd")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_permuted_hits_every_element_once(size: int):
    assert sorted(permuted(np.arange(size), size, 3, 0).tolist()) == list(range(size))


def test_a_permutation_is_a_function_of_its_key_and_position_alone():
    size, position = 50, np.arange(50)
    whole = permuted(position, size, 9, 4)
    assert permuted(position[23:24], size, 9, 4)[0] == whole[23]
    # Each position may have its own key: two epochs in one call.
    both = permuted(np.tile(position, 2), size, 9, np.repeat([4, 5], size))
    assert both[:size].tolist() == whole.tolist()
    assert both[size:].tolist() == permuted(position, size, 9, 5).tolist() != whole.tolist()


def test_every_element_comes_everywhere_equally_often():
    counts = np.zeros((5, 5), int)
    epochs = 4000
    for place in range(5):
        elements = permuted(np.full(epochs, place), 5, 1, np.arange(epochs))
        counts[place] = np.bincount(elements, minlength=5)
    # 800 expected, standard deviation sqrt(4000 * 0.2 * 0.8) = 25.3: five of them are 126.
    assert abs(counts - 800).max() < 126


@pytest.mark.parametrize("size", [0, 2**31 + 1])
def test_a_size_that_has_no_permutation_is_refused(size: int):
    with pytest.raises(ValueError, match=f"size: got {size}"):
        permuted(np.arange(1), size, 0)
