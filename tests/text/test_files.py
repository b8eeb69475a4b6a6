import json
from pathlib import Path

import pytest

from grpo_jax.text import files
from tests.text import published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published.write(tmp_path / "model", "qwen2.5")


def test_what_the_files_say(folder: Path):
    found = files.read(folder)
    assert found.config["eos_token"] == "<|im_end|>" and found.special == {}
    assert list(found.templates) == ["default"] and found.templates["default"] == published.QWEN25
    assert files.role(found, "eos_token") == "<|im_end|>" and files.role(found, "bos_token") is None
    assert files.ids(found, "eos_token_id") == found.generation["eos_token_id"] == [391, 393]
    assert len(files.tokens(found)["model"]["vocab"]) == 391


def test_without_a_generation_configuration_the_model_says_which_tokens_stop(folder: Path):
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": 7, "vocab_size": 400}')
    found = files.read(folder)
    assert files.ids(found, "eos_token_id", "pad_token_id") == [7] and "vocab_size" not in found.generation
    digest = found.digest
    (folder / "config.json").write_text('{"eos_token_id": 7, "vocab_size": 401}')
    assert files.read(folder).digest == digest  # what decides no id is no part of the digest
    (folder / "config.json").write_text('{"eos_token_id": 8, "vocab_size": 401}')
    assert files.read(folder).digest != digest


def test_templates_in_files_go_before_those_of_the_configuration(folder: Path):
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    assert files.read(folder).templates == {"default": published.QWEN25, "tool_use": "tools"}
    (more / "tool_use.jinja").unlink()
    (folder / "chat_template.jinja").unlink()
    assert files.read(folder).templates == {"default": "old"}


def test_listed_special_tokens_in_all_their_forms(folder: Path):
    forms = ["<a>", {"content": "<b>"}], {"video": "<c>"}
    for listed, names in zip(forms, ({"<a>", "<b>"}, {"<c>"}), strict=True):
        (folder / "special_tokens_map.json").write_text(json.dumps({"extra_special_tokens": listed}))
        assert files.listed(files.read(folder)) == names


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json: got no JSON"),
        ("tokenizer_config.json", b"[" * 100_000, r"tokenizer_config\.json: got no JSON"),
        ("tokenizer_config.json", b"\xff", r"tokenizer_config\.json: got no JSON"),
        ("tokenizer_config.json", b"[]", r"got a list; allowed is a JSON object"),
        ("tokenizer_config.json", b" " * (files.LARGEST_OTHER + 1), "got 4,194,305 bytes; allowed are 4,194,304"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: got .* allowed is UTF-8"),
        ("special_tokens_map.json", b"null", "got a NoneType; allowed is a JSON object"),
    ],
    ids=range(7),
)
def test_damaged_files_are_refused_by_name(folder: Path, name: str, content: bytes, complaint: str):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        files.read(folder)


@pytest.mark.parametrize("stated", [3, ["a"], [{"name": "x"}], [{"name": 1, "template": "x"}]], ids=range(4))
def test_a_chat_template_of_another_form_is_refused(folder: Path, stated: object):
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": stated}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template: got"):
        files.read(folder)


def test_a_file_that_leads_out_of_the_folder_is_not_read(folder: Path, tmp_path: Path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "special_tokens_map.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        files.read(folder)


def test_a_folder_without_a_tokenizer_is_refused_with_what_is_there(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("x")
    with pytest.raises(ValueError, match=r"without tokenizer\.json \(\['vocab\.txt'\]\); allowed is a folder"):
        files.read(tmp_path)
