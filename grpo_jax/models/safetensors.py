"""The safetensors format, read and written with numpy alone, every byte of a header checked before it is believed.

A file is eight bytes, the length of the header as a little-endian number; the header, one JSON object from the name of
a tensor to its dtype, shape and byte range, behind which spaces may follow; then the bytes of the tensors, row-major
and little-endian, without a gap (https://huggingface.co/docs/safetensors). Nothing in it can be run.
"""

import functools
import itertools
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

MAX_HEADER = 32 * 2**20
"""Bytes of the longest header read: some hundred thousand tensors. The format itself stops at 100 MB."""
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
"""Name of a dtype in a header -> dtype. Others of the format (of 4 and 6 bits) are refused."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_CHUNK = 2**26
_SHORT_RUN = 2**16

Index = tuple[slice, ...]


class Tensor(NamedTuple):
    """Where one tensor of a file is."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # of its bytes, counted from the beginning of the file
    end: int


def read_header(path: str | os.PathLike) -> dict[str, Tensor]:
    """Name -> tensor of a file, in the order of the header, after everything in the header has been checked.

    Checked are: the length of the header against `MAX_HEADER` and the file; JSON without a key that occurs twice; of
    each tensor a known dtype, a shape of whole numbers from 0, a byte range of just the length of its elements; of all
    of them together, that they cover what follows the header without gap or overlap.

    Raises:
      ValueError: the file is none of this format or was cut short; says which entry of it is wrong.
      OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > MAX_HEADER or length > size - 8:
            raise _refused(
                path,
                f"its first 8 bytes announce a header of {length} bytes in a file of {size}; allowed are at most"
                f" {MAX_HEADER}, and no more than the file has",
            )
        entries = parse_object(file.read(length), what=str(path))
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(path, f"{_METADATA} is {brief(metadata)}; allowed is an object of texts")
    found = {name: _tensor(path, name, entry, start=8 + length) for name, entry in entries.items()}
    _check_cover(path, found, start=8 + length, size=size)
    return found


def parse_object(text: bytes, *, what: str) -> dict[str, Any]:
    """The JSON object in UTF-8 that `text` is. ValueError, which calls it `what`, for anything else or doubled keys."""
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: got no JSON object ({brief(error)}): the file is damaged, get it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{what}: got JSON that is {brief(found)}, allowed is an object: the file is damaged")
    return found


def brief(value: object) -> str:
    """`value` for a message: what a file says is cut and has no control characters."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[:161])
    return f"{text[:160]}..." if len(text) > 160 else text


def read(
    path: str | os.PathLike, tensor: Tensor, index: Index | None = None, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """A fresh array with what `index` selects of a tensor; no other bytes are read, but for those of the same pages.

    Args:
      path: the file that `read_header` described.
      tensor: one of its tensors.
      index: a slice with step 1 for every dimension; None for all of it.
      shape: reads the tensor as if it were of this shape, of as many elements; () for its own.

    Raises ValueError when the file has become shorter than its header says.
    """
    with Path(path).open("rb", buffering=0) as file:
        return read_open(file.fileno(), tensor, index, shape)


def read_open(
    file: int, tensor: Tensor, index: Index | None = None, shape: tuple[int, ...] = (), out: np.ndarray | None = None
) -> np.ndarray:
    """`read` of an open file (its descriptor), into `out` where that is given: row-major, of the shape selected."""
    whole = shape or tensor.shape
    index = tuple(slice(0, size) for size in whole) if index is None else index
    bounds = [cut.indices(size) for cut, size in zip(index, whole, strict=True)]
    counts = tuple(max(stop - start, 0) for start, stop, _ in bounds)
    out = empty(counts, tensor.dtype) if out is None else out
    if out.size == 0:
        return out
    # The last dimensions that are taken whole, and the one before them, are one run of bytes.
    depth = len(whole)
    while depth and counts[depth - 1] == whole[depth - 1]:
        depth -= 1
    depth = max(depth - 1, 0)
    strides = [math.prod(whole[i + 1 :]) * tensor.dtype.itemsize for i in range(len(whole))]
    run = math.prod(counts[depth:]) * tensor.dtype.itemsize
    first = tensor.begin + sum(start * stride for (start, _, _), stride in zip(bounds, strides, strict=True))
    flat = out.reshape(-1).view(np.uint8)
    if math.prod(counts[:depth]) > 1 and run < _SHORT_RUN:
        _read_mapped(file, tensor, whole, tuple(slice(a, b) for a, b, _ in bounds), out)
        return out
    leading = itertools.product(*(range(count) for count in counts[:depth]))
    for number, place in enumerate(leading):
        at = first + sum(step * stride for step, stride in zip(place, strides[:depth], strict=True))
        _read_bytes(file, at, flat[number * run : (number + 1) * run])
    return out


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of no particular values that begins at a multiple of 64 bytes, so that JAX on a CPU need not copy it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def cast(array: np.ndarray, dtype: np.dtype, *, what: str) -> np.ndarray:
    """`array` in another float dtype, rounded to nearest; itself where it has that dtype.

    Raises ValueError, which calls it `what`, where a finite number becomes infinite.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    if jnp.finfo(dtype).max < jnp.finfo(array.dtype).max and np.any(np.isinf(found) & ~np.isinf(array)):
        raise ValueError(f"{what}: got numbers in {array.dtype} that {dtype} cannot hold: take float32 or bfloat16")
    return found


def write(
    path: str | os.PathLike,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    value: Callable[[str], Iterable[np.ndarray]],
) -> None:
    """Write a file and wait until it is on the disk.

    Args:
      path: must not exist.
      layout: name -> dtype and shape of every tensor.
      value: name -> arrays of that dtype which, one behind the other, have the elements of the tensor, row-major;
        called once for each name, so that one tensor at a time has to be in memory.
    """
    ordered = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    at = 0
    for name in ordered:
        dtype, shape = layout[name]
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code(dtype), "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with Path(path).open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            dtype, shape = layout[name]
            written = 0
            for array in value(name):
                if array.dtype != dtype:
                    raise ValueError(f"{name}: got an array of {array.dtype}, allowed is {dtype}, as its layout says")
                written += file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            if written != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name}: got {written} bytes, allowed are those of {dtype} {shape}")
        file.flush()
        os.fsync(file.fileno())


def code(dtype: np.dtype) -> str:
    """Name of a dtype in a header. Raises ValueError for one that the format has no name for."""
    if np.dtype(dtype) not in _CODES:
        raise ValueError(f"dtype: got {dtype}, allowed are {', '.join(map(str, _CODES))}")
    return _CODES[np.dtype(dtype)]


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}: the file is damaged or no safetensors file, get it again")


def _tensor(path: Path, name: str, entry: Any, *, start: int) -> Tensor:
    refused = functools.partial(_entry_refused, path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused(brief(entry), "an object of dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise refused(f"dtype {brief(kind)}", ", ".join(DTYPES))
    if not isinstance(shape, list) or len(shape) > 32 or not all(_is_count(size) for size in shape):
        raise refused(f"shape {brief(shape)}", "a list of at most 32 whole numbers from 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise refused(f"data_offsets {brief(offsets)}", "two whole numbers from 0")
    wanted = math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise refused(f"data_offsets {offsets} for {kind} {brief(shape)}", f"a range of {wanted} bytes")
    return Tensor(DTYPES[kind], tuple(shape), start + offsets[0], start + offsets[1])


def _entry_refused(path: Path, name: str, got: str, allowed: str) -> ValueError:
    return _refused(path, f"tensor {brief(name)}: got {got}, allowed: {allowed}")


def _check_cover(path: Path, tensors: Mapping[str, Tensor], *, start: int, size: int) -> None:
    at, before = start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            what = "overlaps" if tensor.begin < at else f"leaves a gap of {tensor.begin - at} bytes behind"
            raise _refused(
                path, f"tensor {brief(name)}: got bytes {tensor.begin} to {tensor.end}, which {what} {before}"
            )
        if tensor.end > size:
            raise _refused(path, f"tensor {brief(name)}: got a range to byte {tensor.end} of a file of {size}")
        at, before = tensor.end, f"tensor {brief(name)}"
    if at != size:
        raise _refused(path, f"its tensors end at byte {at} of {size}; allowed are no bytes that belong to none")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {brief(twice)} occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _read_bytes(file: int, at: int, out: np.ndarray) -> None:
    done = 0
    while done < out.size:
        count = os.preadv(file, [out[done : done + _CHUNK].data], at + done)
        if count == 0:
            raise ValueError(f"the file ends at byte {at + done}, inside a tensor: it was cut short, get it again")
        done += count


def _read_mapped(file: int, tensor: Tensor, shape: tuple[int, ...], index: Index, out: np.ndarray) -> None:
    """Many short runs: through a view of the file, of which only the pages looked at are read."""
    if os.fstat(file).st_size < tensor.end:
        raise ValueError(f"the file ends before byte {tensor.end}, inside a tensor: it was cut short, get it again")
    page = tensor.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(file, tensor.end - page, offset=page, access=mmap.ACCESS_READ) as memory:
        view = np.frombuffer(memory, tensor.dtype, math.prod(shape), tensor.begin - page)
        np.copyto(out, view.reshape(shape)[index])
        del view
