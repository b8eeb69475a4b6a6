"""Randomness without state: integers hashed from counters, and permutations computed one element at a time.

Every draw is a pure function of the words it is hashed from (seed, number of the draw, field, attempt), so that data
needs no iterator, nothing to save, and any draw can be made again alone. The mixing function is the finaliser of
SplitMix64 (Steele, Lea and Flood, 2014), chained over the words.
"""

import hashlib

import numpy as np

Bits = np.ndarray
_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ROUNDS = 6


def mix(words: Bits) -> Bits:
    """SplitMix64's finaliser on u64[...]: a bijection in which every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def hashed(*words: int | np.ndarray) -> Bits:
    """u64[...] of the broadcast shape of `words` (at least one axis), each word taken modulo 2^64; order matters."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix((state + _GOLDEN) ^ _as_bits(word))
    return state


def below(bits: Bits, bound: int) -> np.ndarray:
    """i64[...] in [0, bound) from u64 bits, uniform up to bound / 2^32 (multiply and shift); bound at most 2^31."""
    return ((bits >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def unit(bits: Bits) -> np.ndarray:
    """f64[...] in [0, 1) from the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def row_hash(rows: np.ndarray) -> Bits:
    """u64[n] of integer rows [n, m]: a sum of one hash a column, mixed once more. Trailing -1 entries do not count."""
    column = np.arange(rows.shape[1], dtype=np.int64)
    hashes = np.where(rows >= 0, hashed(column[None, :], rows), np.uint64(0))
    return mix(hashes.sum(axis=1, dtype=np.uint64))


def text_hash(text: str) -> int:
    """64 bits of a text, the same on every machine and in every version of Python."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def permuted(position: np.ndarray, size: int, *key: int | np.ndarray) -> np.ndarray:
    """Element `position` (i64[n], in [0, size)) of the permutation of range(size) that `key` names; i64[n].

    A balanced Feistel network over the next power of four, walked along its cycle until it falls below `size` (at most
    four rounds expected). Key words may be arrays i64[n]: every position then has its own permutation, such as one an
    epoch. Nothing is stored, whatever the size.
    """
    if not 1 <= size <= 2**31:
        raise ValueError(f"size: got {size}; allowed are 1 to 2^31")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.broadcast_to(hashed(*key), position.shape)
    value = _feistel(_as_bits(position), half, keys)
    while (outside := value >= np.uint64(size)).any():
        value[outside] = _feistel(value[outside], half, keys[outside])
    return value.astype(np.int64)


def _feistel(value: Bits, half: np.uint64, keys: Bits) -> Bits:
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & low_bits
    for number in range(_ROUNDS):
        left, right = right, left ^ (hashed(keys, number, right) & low_bits)
    return (left << half) | right


def _as_bits(word: int | np.ndarray) -> Bits:
    if isinstance(word, np.ndarray):
        return np.atleast_1d(word).astype(np.uint64)
    return np.full(1, int(word) & _WORD, np.uint64)
