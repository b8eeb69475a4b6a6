"""Where weights lie: folders, the Hub's cache, indices; nothing outside of the folder is opened, nothing pickled."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from grpo_jax.models import safetensors
from grpo_jax.models.source import CONFIG, INDEX, SINGLE, WANTED, fingerprint, locate, tensors


def put(path: Path, **arrays: np.ndarray) -> Path:
    safetensors.write(path, {n: (a.dtype, a.shape) for n, a in arrays.items()}, lambda n: [arrays[n]])
    return path


ONE, TWO = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32)


@pytest.fixture(name="folder")
def two_files(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    put(folder / "a.safetensors", one=ONE)
    put(folder / "b.safetensors", two=TWO)
    index(folder, one="a.safetensors", two="b.safetensors")
    (folder / CONFIG).write_text("{}")
    return folder


def index(folder: Path, **mapping: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": mapping}))


def test_an_index_says_which_file_a_tensor_is_in(folder: Path, tmp_path: Path):
    found = tensors(folder)
    assert {name: placed.file.name for name, placed in found.items()} == {
        "one": "a.safetensors",
        "two": "b.safetensors",
    }
    alone = tmp_path / "alone"
    alone.mkdir()
    put(alone / SINGLE, one=ONE)
    assert tensors(alone)["one"].tensor.shape == (4,)
    put(alone / "consolidated.safetensors", other=ONE)  # a second copy in another naming is not looked at
    assert [*tensors(alone)] == ["one"]


NAMES = {
    "above": "../a.safetensors",
    "absolute": "/a.safetensors",
    "in_a_folder": "x/a.safetensors",
    "backslash": "x\\a.safetensors",
    "pickle": "a.bin",
    "hidden": ".a.safetensors",
    "zero": "a.safetensors\0.bin",
    "dots": "..",
    "number": 3,
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_index_names_files_of_the_folder_and_nothing_else(folder: Path, name: str):
    put(folder.parent / "a.safetensors", one=ONE)
    index(folder, one=NAMES[name], two="b.safetensors")
    with pytest.raises(ValueError, match=r"allowed are names of files in .* that end in .safetensors"):
        tensors(folder)


def test_an_index_has_to_describe_its_files(folder: Path):
    index(folder, one="a.safetensors", two="a.safetensors")
    with pytest.raises(ValueError, match="not where it says: 'two'"):
        tensors(folder)
    index(folder, one="a.safetensors")
    put(folder / "c.safetensors", one=ONE)
    index(folder, one="c.safetensors", two="a.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'one' in a\.safetensors and c\.safetensors"):
        tensors(folder)
    put(folder / "d.safetensors", more=ONE, four=ONE)
    index(folder, four="d.safetensors")
    with pytest.raises(ValueError, match="not in it: 'more'"):
        tensors(folder)
    index(folder, one="gone.safetensors")
    with pytest.raises(ValueError, match="got no file of this name"):
        tensors(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "allowed is an object"),
        ("{", "got no JSON object"),
        ('{"weight_map": []}', r"got weight_map \[\]"),
        ('{"weight_map": {}}', "got weight_map {}"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "occurs twice"),
        (" " * (32 * 2**20 + 1), "allowed are fewer: it is no index"),
    ],
    ids=["list", "broken", "map_is_a_list", "empty", "doubled", "long"],
)
def test_an_index_that_is_none_is_refused(folder: Path, text: str, message: str):
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        tensors(folder)


def test_one_of_two_ways_to_find_weights(folder: Path):
    put(folder / SINGLE, one=ONE)
    with pytest.raises(ValueError, match=r"got both model.safetensors and model.safetensors.index.json"):
        tensors(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_unopened(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)  # opening it would wait for ever
    with pytest.raises(ValueError, match=f"got weights as {name}, .*a pickle can run code.*save_pretrained"):
        tensors(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"got neither model.safetensors nor model.safetensors.index.json"):
        tensors(tmp_path)
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        tensors(tmp_path)


def test_links_out_of_a_folder_are_refused_and_those_of_the_cache_of_the_hub_followed(tmp_path: Path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    put(blobs / "c0ffee", one=ONE)
    (snapshot / SINGLE).symlink_to("../../blobs/c0ffee")
    assert [*tensors(snapshot)] == ["one"]
    outside = put(tmp_path / "outside.safetensors", one=ONE)
    for folder in (snapshot, tmp_path / "plain"):
        folder.mkdir(exist_ok=True)
        (folder / SINGLE).unlink(missing_ok=True)
        (folder / SINGLE).symlink_to(outside)
        with pytest.raises(ValueError, match="a link that leads out of the folder"):
            tensors(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("nowhere")
    with pytest.raises(ValueError, match="got no file of this name"):
        tensors(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(SINGLE)
    with pytest.raises(ValueError, match="got no file of this name"):
        tensors(folder)


def test_a_folder_goes_before_a_name_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}
    hub: Any = ModuleType("huggingface_hub")

    def snapshot_download(name: str, **given: Any) -> str:
        if name == "gone/away":
            raise OSError("401 Client Error\x1b[31m")
        asked.update(given, name=name)
        return str(folder)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert locate(folder) == folder
    assert asked == {}
    assert locate("Qwen/Qwen2.5-0.5B", revision="v1") == folder
    assert asked == {"name": "Qwen/Qwen2.5-0.5B", "revision": "v1", "allow_patterns": list(WANTED)}
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in WANTED)
    with pytest.raises(ValueError, match="revision: got 'v1' for the local folder"):
        locate(folder, revision="v1")
    for wrong in ("no/such/folder", "name", "../up", "/no/where", "a/b\n"):
        with pytest.raises(ValueError, match="allowed are a folder that exists or owner/name on the Hub"):
            locate(wrong)
    with pytest.raises(ValueError, match="could not be fetched from the Hub") as caught:
        locate("gone/away")
    assert "\x1b" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "grpo-jax\[hf\]"'):
        locate("Qwen/Qwen2.5-0.5B")


def test_a_fingerprint_tells_other_weights_and_other_settings(folder: Path):
    first = fingerprint(folder)
    assert len(first) == 64
    assert fingerprint(folder) == first
    (folder / CONFIG).write_text('{"x": 1}')
    changed = fingerprint(folder)
    assert changed != first
    content = bytearray((folder / "b.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "b.safetensors").write_bytes(content)
    assert fingerprint(folder) != changed


def test_a_fingerprint_reads_blocks_at_even_distances(folder: Path):
    (folder / "b.safetensors").unlink()
    put(folder / "b.safetensors", two=np.zeros(1000, np.uint8))
    few = fingerprint(folder, blocks=2, block_bytes=10)
    content = bytearray((folder / "b.safetensors").read_bytes())
    begin = len(content) - 1000
    for at, seen in ((0, True), (9, True), (10, False), (500, False), (989, False), (990, True), (999, True)):
        other = content.copy()
        other[begin + at] = 1
        (folder / "b.safetensors").write_bytes(other)
        assert (fingerprint(folder, blocks=2, block_bytes=10) != few) == seen, at
        assert fingerprint(folder, blocks=100, block_bytes=10) != few
