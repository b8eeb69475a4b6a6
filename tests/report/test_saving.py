"""What a report writes is whole, and takes the place of nothing but an older report."""

from pathlib import Path

import pytest

from grpo_jax.report.saving import MARK, check_place, replace


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("old and longer")
    replace(path, "new\n")
    assert path.read_bytes() == b"new\n" and list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_does_not_stop_a_page(tmp_path: Path):
    replace(tmp_path / "a", "x\ud800y")
    assert (tmp_path / "a").read_text("utf-8") == "x?y"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "figure.svg").symlink_to(tmp_path / "precious")
    replace(tmp_path / "figure.svg", "<svg/>")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "figure.svg").is_symlink()


def test_only_a_report_may_be_overwritten(tmp_path: Path):
    check_place(tmp_path / "new.html")
    (tmp_path / "old.html").write_text(f"<!doctype html>\n{MARK}")
    check_place(tmp_path / "old.html")
    (tmp_path / "notes.html").write_text("my notes")
    with pytest.raises(ValueError, match=r"notes\.html, where a file stands that is no report of grpo-jax"):
        check_place(tmp_path / "notes.html")
    (tmp_path / "bytes.html").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no report"):
        check_place(tmp_path / "bytes.html")
    (tmp_path / "dangling.html").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no report"):
        check_place(tmp_path / "dangling.html")


def test_a_place_that_cannot_hold_a_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="which is a folder; allowed is a file"):
        check_place(tmp_path)
    with pytest.raises(ValueError, match="whose folder is not there"):
        check_place(tmp_path / "none" / "page.html")
