"""The digests of a state are plain sums of its bits, whatever mesh it lives on."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax.checkpoint import digests, leaf_digests, state_digest


def test_digest_of_a_vector_is_the_sum_and_the_index_weighted_sum_of_its_bits():
    # 1.0f is 0x3f800000, 2.0f is 0x40000000: sum 0x7f800000; 1 * 0x3f800000 + 2 * 0x40000000 = 0xbf800000.
    assert leaf_digests({"x": jnp.array([1.0, 2.0], jnp.float32)}) == {"x": (0x7F800000, 0xBF800000)}
    # 3 * 1 + 5 = 8 in both sums modulo 2^32: 2^32 - 1 counts as -1. -1 + 3 = 2 and -1 + 2 * 3 = 5.
    assert leaf_digests({"x": jnp.array([-1, 3], jnp.int32)}) == {"x": (2, 5)}


def twin(x):
    """The same in numpy, on the flattened array: words of 32 bits, narrower types zero-extended."""
    x = np.asarray(x)
    flat = np.ascontiguousarray(x).reshape(-1)
    if x.dtype == np.bool_:
        words = flat.astype(np.uint64)
    else:
        words = flat.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]).astype(np.uint64)
    index = np.arange(1, words.size + 1, dtype=np.uint64)
    total = sum(int(w) for w in words)
    return total % 2**32, sum(int(w) * int(i) for w, i in zip(words, index, strict=True)) % 2**32


def test_digests_of_every_dtype_equal_exact_integer_arithmetic_on_the_flattened_words():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 4, 5)) * 1e3
    with jax.enable_x64(True):
        names = "float64 float32 bfloat16 float16 int64 uint64 int32 uint32 int8 uint16 float8_e4m3fn".split()
        tree = {name: jnp.asarray(np.abs(values) % 100, jnp.dtype(name)) for name in names}
        tree |= {"bool": jnp.asarray(values > 0), "scalar": jnp.float32(-0.0), "empty": jnp.zeros((0, 3))}
        found = leaf_digests(tree)
        assert found == {name: twin(value) for name, value in tree.items()}


def test_digest_of_a_random_key_is_that_of_its_data():
    key = jax.random.key(7)
    assert leaf_digests({"k": key}) == leaf_digests({"k": jax.random.key_data(key)})


def test_digests_are_equal_on_every_mesh():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in (P(), P("a", "b"), P("b", None), P(None, "a"))]
    assert [leaf_digests({"x": y}) for y in placed] == [leaf_digests({"x": x})] * 4


def test_digests_on_a_mesh_gather_nothing():
    mesh = Mesh(np.array(jax.devices()), ("a",))
    x = jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, P("a")))
    text = digests._pairs.lower([x]).compile().as_text() or ""
    assert "all-reduce" in text and "all-gather" not in text


def test_any_flipped_bit_and_any_exchange_of_unequal_words_change_the_digest():
    x = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
    variants = {f"bit{i}": x ^ (np.arange(6).reshape(2, 3) == i % 6) * np.int32(1 << (5 * i % 31)) for i in range(12)}
    swapped = x.copy()
    swapped[0, 0], swapped[1, 2] = x[1, 2], x[0, 0]
    found = leaf_digests({"x": x, "swapped": swapped, **variants})
    assert len(set(found.values())) == len(found)


def test_state_digest_is_sha256_over_sorted_names_and_pairs_and_tells_names_apart():
    # The words of 1 and 2 weigh 1: pairs (1, 1) and (2, 2).
    expected = hashlib.sha256(b'[["a",1,1],["b",2,2]]').hexdigest()
    assert state_digest({"b": jnp.int32(2), "a": jnp.int32(1)}) == expected
    assert state_digest({"c": jnp.int32(2), "a": jnp.int32(1)}) != expected


def test_complex_arrays_and_paths_that_collide_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        leaf_digests({"x": jnp.zeros(2, jnp.complex64)})
    with pytest.raises(ValueError, match="same path"):
        leaf_digests({"a/b": jnp.zeros(2), "a": {"b": jnp.zeros(2)}})
