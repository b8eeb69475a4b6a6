"""The format byte by byte: files put together by hand are read, ours are laid out as it says, others refused."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import safetensors
from grpo_jax.models.safetensors import Tensor, read, read_header, write

BF16 = np.dtype(jnp.bfloat16)


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, put together by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture(name="file")
def a_path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_put_together_by_hand_is_read(file: Path):
    data = np.array([1, -2], "<f4").tobytes() + bytes([0, 63, 128, 191]) + np.array(7, "<i8").tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "halves": entry("BF16", [2, 1], 8, 12),
        "one": entry("I64", [], 12, 20),
        "two": entry("F32", [2], 0, 8),
        "none": entry("F32", [0, 5], 8, 8),
    }
    file.write_bytes(packed(header, data))
    found = read_header(file)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        "halves": (BF16, (2, 1)),
        "one": (np.dtype("int64"), ()),
        "two": (np.dtype("float32"), (2,)),
        "none": (np.dtype("float32"), (0, 5)),
    }
    assert read(file, found["two"]).tolist() == [1.0, -2.0]
    assert read(file, found["halves"]).astype(np.float32).tolist() == [[0.5], [-1.0]]  # 0x3f00 and 0xbf80
    assert read(file, found["one"]).tolist() == 7
    assert read(file, found["none"]).shape == (0, 5)


def test_a_file_is_laid_out_as_the_format_says(file: Path):
    arrays = {"b": np.arange(3, dtype=np.int16), "a": np.array([[1.5]], np.float32), "e": np.zeros((0,), np.float32)}
    layout = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write(file, layout, lambda name: [arrays[name]])
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # so that every tensor begins at a multiple of its width
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [1, 1], 0, 4),
        "e": entry("F32", [0], 4, 4),
        "b": entry("I16", [3], 4, 10),
    }
    assert content[8 + length :] == np.float32(1.5).tobytes() + np.arange(3, dtype="<i2").tobytes()
    with pytest.raises(FileExistsError):
        write(file, layout, lambda name: [arrays[name]])


def test_what_is_written_has_to_be_what_was_announced(tmp_path: Path):
    layout = {"a": (np.dtype("float32"), (3,))}
    with pytest.raises(ValueError, match="a: got 8 bytes, allowed are those of float32"):
        write(tmp_path / "short", layout, lambda _: [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match="a: got an array of float64"):
        write(tmp_path / "wide", layout, lambda _: [np.zeros(3)])
    with pytest.raises(ValueError, match="dtype: got complex64, allowed are float64"):
        write(tmp_path / "odd", {"a": (np.dtype("complex64"), ())}, lambda _: [np.zeros((), np.complex64)])


SLICES = {
    "all": (slice(None), slice(None), slice(None)),
    "rows": (slice(1, 3), slice(None), slice(None)),
    "columns": (slice(None), slice(None), slice(1, 3)),
    "middle": (slice(None), slice(2, 4), slice(None)),
    "corner": (slice(3, 4), slice(0, 2), slice(4, 5)),
    "nothing": (slice(2, 2), slice(None), slice(None)),
}


@pytest.mark.parametrize("short_run", [0, safetensors._SHORT_RUN], ids=["runs", "mapped"])
@pytest.mark.parametrize("name", sorted(SLICES))
def test_a_slice_is_what_numpy_makes_of_the_whole(
    file: Path, name: str, short_run: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(safetensors, "_SHORT_RUN", short_run)
    whole = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    arrays = {"before": np.zeros(3, np.float32), "whole": whole}
    write(file, {n: (a.dtype, a.shape) for n, a in arrays.items()}, lambda n: [arrays[n]])
    tensor = read_header(file)["whole"]
    np.testing.assert_array_equal(read(file, tensor, SLICES[name]), whole[SLICES[name]])
    flat = whole.reshape(24, 5)
    index = (slice(3, 20), slice(0, 4))
    np.testing.assert_array_equal(read(file, tensor, index, (24, 5)), flat[index])


def test_only_the_bytes_of_a_slice_are_read(file: Path, monkeypatch: pytest.MonkeyPatch):
    whole = np.arange(6, dtype=np.float32).reshape(3, 2)
    write(file, {"a": (whole.dtype, whole.shape)}, lambda _: [whole])
    tensor, seen = read_header(file)["a"], []
    real = safetensors._read_bytes
    monkeypatch.setattr(safetensors, "_read_bytes", lambda f, at, out: (seen.append((at, out.size)), real(f, at, out)))
    assert read(file, tensor, (slice(1, 2), slice(None))).tolist() == [[2.0, 3.0]]
    assert seen == [(tensor.begin + 8, 8)]


def test_an_array_begins_where_jax_can_take_it_over():
    assert all(safetensors.empty((3, n), BF16).ctypes.data % 64 == 0 for n in range(1, 40))


def test_numbers_are_rounded_to_nearest_and_never_become_infinite():
    half = np.array([1 + 2**-8, 1 + 3 * 2**-8, -np.inf, 2.0**127], np.float32)  # ties go to even: 1 and 1 + 2^-6
    assert safetensors.cast(half, BF16, what="").astype(np.float32).tolist() == [1.0, 1 + 2**-6, -np.inf, 2.0**127]
    assert safetensors.cast(half, half.dtype, what="") is half
    for source in (np.dtype("float32"), BF16):
        with pytest.raises(ValueError, match=f"w: got numbers in {source} that float16 cannot hold"):
            safetensors.cast(np.array([1e5], source), np.dtype("float16"), what="w")


GOOD = entry("F32", [2], 0, 8)
EIGHT = bytes(8)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header of 0 bytes in a file of 0"),
    "seven_bytes": (b"\x02\0\0\0\0\0\0", "in a file of 7"),
    "huge_header": (packed(b"{}", length=2**63), "header of 9223372036854775808 bytes"),
    "header_behind_the_end": (packed(b"{}", length=3), "header of 3 bytes in a file of 10"),
    "header_above_the_limit": (packed(b" " * (safetensors.MAX_HEADER + 1)), "allowed are at most 33554432"),
    "no_json": (packed(b"{'a': 1}"), "got no JSON object"),
    "no_text": (packed(b"\xff\xfe{}"), "got no JSON object"),
    "nested": (packed(b"[" * 100_000), "got no JSON object"),
    "a_list": (packed([1]), "allowed is an object"),
    "not_a_number": (packed(b'{"a": NaN}'), "NaN is no JSON"),
    "doubled_key": (packed(b'{"a": 1, "a": 2}'), "the key 'a' occurs twice"),
    "doubled_inner_key": (
        packed(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
        "the key 'dtype' occurs twice",
    ),
    "metadata": (packed({"__metadata__": {"a": 1}}), "allowed is an object of texts"),
    "entry": (packed({"a": [1]}), "allowed: an object of dtype, shape and data_offsets"),
    "further_field": (packed({"a": {**GOOD, "code": "x"}}, EIGHT), "allowed: an object of dtype"),
    "unknown_dtype": (packed({"a": {**GOOD, "dtype": "object"}}, EIGHT), "dtype 'object', allowed: F64, F32"),
    "dtype_no_text": (packed({"a": {**GOOD, "dtype": ["F32"]}}, EIGHT), "got dtype"),
    "negative_size": (packed({"a": {**GOOD, "shape": [-2]}}, EIGHT), "whole numbers from 0"),
    "fractional_size": (packed({"a": {**GOOD, "shape": [2.0]}}, EIGHT), "whole numbers from 0"),
    "boolean_size": (packed({"a": {**GOOD, "shape": [True, 2]}}, EIGHT), "whole numbers from 0"),
    "huge_size": (packed({"a": {**GOOD, "shape": [2**40, 2**40]}}, EIGHT), "a range of"),
    "many_dimensions": (packed({"a": {**GOOD, "shape": [1] * 33}}, EIGHT), "at most 32"),
    "offsets": (packed({"a": {**GOOD, "data_offsets": [0]}}, EIGHT), "two whole numbers from 0"),
    "reversed": (packed({"a": {**GOOD, "data_offsets": [8, 0]}}, EIGHT), "a range of 8 bytes"),
    "negative_offset": (packed({"a": {**GOOD, "data_offsets": [-8, 0]}}, EIGHT), "two whole numbers from 0"),
    "other_length": (packed({"a": {**GOOD, "shape": [3]}}, EIGHT), "a range of 12 bytes"),
    "truncated": (packed({"a": GOOD}, bytes(7)), "of a file of"),
    "behind": (packed({"a": GOOD}, bytes(9)), "allowed are no bytes that belong to none"),
    "gap": (packed({"a": GOOD, "b": entry("F32", [1], 12, 16)}, bytes(16)), "leaves a gap of 4 bytes"),
    "gap_at_the_start": (packed({"a": entry("F32", [1], 4, 8)}, EIGHT), "leaves a gap of 4 bytes behind the header"),
    "overlap": (packed({"a": GOOD, "b": entry("F32", [1], 4, 8)}, EIGHT), "overlaps tensor 'a'"),
    "same_bytes": (packed({"a": GOOD, "b": GOOD}, EIGHT), "overlaps tensor 'a'"),
    "pickle": (b"PK\x03\x04" + bytes(40), "announce a header"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_file_that_is_wrong_is_refused_before_anything_of_it_is_used(file: Path, name: str):
    content, message = HOSTILE[name]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_header(file)


def test_what_a_file_says_reaches_no_terminal_unfiltered(file: Path):
    file.write_bytes(packed({"\x1b[2J" + "a" * 500: [1]}))
    with pytest.raises(ValueError, match="got") as caught:
        read_header(file)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_file_that_is_cut_after_its_header_was_read_is_refused(file: Path):
    whole = np.zeros((4, 4), np.float32)
    write(file, {"a": (whole.dtype, whole.shape)}, lambda _: [whole])
    tensor = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="inside a tensor: it was cut short"):
        read(file, tensor)
    with pytest.raises(ValueError, match="inside a tensor: it was cut short"):
        read(file, tensor, (slice(None), slice(0, 1)))
    assert read(file, Tensor(tensor.dtype, (4,), tensor.begin, tensor.begin + 16)).tolist() == [0.0] * 4
