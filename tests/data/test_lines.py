import os

import pytest

from grpo_jax.data.lines import read_lines
from grpo_jax.lifeline import BadData

TAGS = ("<eos>", "<answer>")
GOOD = b'{"prompt": "a?", "answer": "1"}\n'


def test_fields_and_metadata_are_told_apart(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + '{"prompt": "é?", "answer": "2", "solution": "", "level": 3, "tags": ["x"]}'.encode())
    first, second = read_lines(str(path), TAGS)
    assert (first.number, first.prompt, first.answer, first.solution, first.metadata) == (1, "a?", "1", None, {})
    assert (second.number, second.prompt, second.solution) == (2, "é?", "")
    assert second.metadata == {"level": 3, "tags": ["x"]}


def test_lines_may_end_in_the_windows_way_and_hold_unicode_line_separators(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"prompt": "a\u2028b", "answer": "1"}\r\n{"prompt": "c", "answer": "2"}\r\n'.encode())
    assert [line.prompt for line in read_lines(str(path), TAGS)] == ["a\u2028b", "c"]


def test_a_tag_in_a_prompt_is_text(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "what is <eos>?", "answer": "1"}')
    assert read_lines(str(path), TAGS)[0].prompt == "what is <eos>?"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "not valid JSON"),
        (b'{"prompt": "a" "answer": "1"}', r"\(Expecting ',' delimiter, column 16\), got"),
        (b'{"prompt": "a", "answer": NaN}', "NaN is not JSON"),
        (b'{"prompt": "a", "answer": "1", "answer": "2"}', "key 'answer' stands twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 5000, "not valid JSON"),
        (b'["a", "1"]', "got list"),
        (b"null", "got NoneType"),
        (b'{"prompt": "a"}', r'field "answer" is missing, got \[\'prompt\'\]'),
        (b'{"answer": "1"}', 'field "prompt" is missing'),
        (b'{"prompt": "a", "answer": 1}', 'field "answer" is int 1; allowed is a string'),
        (b'{"prompt": null, "answer": "1"}', 'field "prompt" is NoneType None'),
        (b'{"prompt": "a", "answer": "1", "solution": ["x"]}', "allowed is a string; .*leave the field out"),
        (b'{"prompt": "a", "answer": " "}', "field \"answer\" is ' '; allowed is a string that is not blank"),
        (b'{"prompt": "", "answer": "1"}', "not blank"),
        (b'{"prompt": "a", "answer": "1<eos>"}', "special token '<eos>'"),
        (b'{"prompt": "a", "answer": "1", "solution": "<answer>"}', "special token '<answer>'"),
        (b'{"prompt": "a\\ud800", "answer": "1"}', "lone surrogate"),
        (b'{"prompt": "\xff", "answer": "1"}', "byte 0xff at column 13 is not UTF-8"),
        (b"", "the line is empty"),
        (b"   ", "the line is empty"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_and_line(tmp_path, line: bytes, complaint: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=complaint) as error:
        read_lines(str(path), TAGS)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n"])
def test_an_empty_file_is_an_error(tmp_path, data: bytes):
    path = tmp_path / "d.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="the file is empty"):
        read_lines(str(path), TAGS)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be read \(.*\); allowed is a JSONL file"):
            read_lines(str(path), TAGS)


@pytest.mark.parametrize(("encoding", "name"), [("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16")])
def test_a_byte_order_mark_is_named(tmp_path, encoding: str, name: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD.decode().encode(encoding))
    with pytest.raises(BadData, match=f"byte order mark of {name}; allowed is UTF-8 without one"):
        read_lines(str(path), TAGS)


def test_a_pipe_is_refused_at_once_and_so_is_a_name_that_is_none(tmp_path):
    path = tmp_path / "d.jsonl"
    os.mkfifo(path)
    with pytest.raises(BadData, match="got a pipe or a device; allowed is a JSONL file"):
        read_lines(str(path), TAGS)
    for name in (str(tmp_path), str(tmp_path / ("x" * 300)), "a\0b"):
        with pytest.raises(BadData, match="cannot be read"):
            read_lines(name, TAGS)
