"""A page is one file that holds what the runs came to, runs nothing of theirs and asks nothing of anybody.

The tests that open it in a browser need Debian's package `chromium`; without it they fail and say so.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli
from grpo_jax.report.page import page, policy
from grpo_jax.report.runs import gather
from tests.report.chromium import opened, program
from tests.report.run_folder import metrics_of, sample_of, write_run

OUTSIDE = "http://127.0.0.1:9"
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    f"<img src={OUTSIDE}/img onerror=\"document.title='owned'\">",
    f"<link rel=stylesheet href={OUTSIDE}/css><style>@import '{OUTSIDE}/import';</style>",
    f"<iframe src={OUTSIDE}/frame></iframe><base href={OUTSIDE}/>",
    f"'\"><svg onload=\"document.title='owned'\"><image href={OUTSIDE}/svg></svg>",
    f"<meta http-equiv=refresh content='0;url={OUTSIDE}/refresh'>",
    "\x1b]0;owned\x07\x1b[2J",
    "abc\u202ecba\u2066",
    "nul\x00half\ud800",
    "</pre></article></section></main>" + "x" * 1_000_000,
)


def held_out(step: int, number: int, accuracy: float, **more: Any) -> dict[str, Any]:
    text = {"prompt": f"held {number}=", "completion": f"held says {number}", "answer": "7"}
    return {"phase": "grpo", "step": step, "set": "heldout", "components": {"accuracy": accuracy}, **text, **more}


def two_runs(tmp_path: Path) -> list[Path]:
    """Each with 2 steps of 5 completions, one of them cut off and one without a score, and 2 held-out ones a step."""
    folders = []
    for name, accuracy in (("first", 0.75), ("second", 0.5)):
        rows = []
        for step in (2, 4):
            wrong, differ = {"accuracy": 0.0}, {"accuracy": 1.0, "accuracy_exact": 0.0}
            rows += [sample_of(step, 0, 0.0), sample_of(step, 1, 0.5, components=wrong, stopped=False)]
            rows += [sample_of(step, 2, None), sample_of(step, 3, 1.0, components=differ)]
            rows += [sample_of(step, 4, 0.25, components=wrong)]
            rows += [held_out(step, number, float(number)) for number in (0, 1)]
        folders.append(write_run(tmp_path / name, metrics_of(accuracy), rows))
    return folders


def test_one_run_has_its_figure_and_its_page_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, _ = two_runs(tmp_path)
    for _ in range(2):  # an older report is replaced
        assert cli.main(["report", str(folder)]) == 0
        assert capsys.readouterr().out.split() == [str(folder / "figure.svg"), str(folder / "report.html")]
    assert (folder / "figure.svg").read_text("utf-8").startswith("<svg ")
    text = (folder / "report.html").read_text("utf-8")
    assert "<h1>sums <small>first</small></h1>" in text and "In 4 GRPO steps after 8 of warm start" in text


def test_several_runs_have_one_page_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folders = [str(folder) for folder in two_runs(tmp_path)]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *folders]) == 0
    assert cli.main(["report", *folders, "--out", str(tmp_path / "both.html"), "--most", "1"]) == 0
    assert capsys.readouterr().out.split() == ["report.html", str(tmp_path / "both.html")]
    assert not list(tmp_path.rglob("figure.svg"))
    both = (tmp_path / "both.html").read_text("utf-8")
    assert "first: 2 of 10 of train (2 of 2 steps), 2 of 4 of heldout" in both


def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(folder) for folder in two_runs(tmp_path)]
    mine = tmp_path / "mine.html"
    mine.write_text("my page")
    for arguments, sentence in (
        ([*folders, "--out", str(mine)], "where a file stands that is no report of grpo-jax"),
        ([str(tmp_path)], "which holds no run"),
        ([*folders, "--most", "0"], "--most: got 0, allowed 1 or more"),
        ([folders[0], folders[0]], "twice; allowed is each run once"),
        (
            [*folders, "--verifiers", "accuracy,lean"],
            "--verifiers: got 'lean', allowed two or more of the components acc",
        ),
    ):
        assert cli.main(["report", *arguments]) == 4
        assert sentence in capsys.readouterr().err
    assert mine.read_text() == "my page"


def test_equal_runs_give_equal_bytes_and_the_page_names_no_other_place(tmp_path: Path):
    folders = two_runs(tmp_path)
    text = page(gather(folders, most=12))
    assert text == page(gather(folders, most=12))
    assert re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//[^\n]*$", "", text, flags=re.MULTILINE)) == []
    assert set(re.findall(r'(?:href|src|action)="([^"#]*)', text)) <= {""}
    assert re.findall(r"url\((?!#)|@import|innerHTML|insertAdjacent|document\.write|eval\(", text) == []
    assert re.findall(r"\son\w+=|\sstyle=", text) == []


def test_the_policy_allows_what_has_the_digest_and_nothing_else():
    # The digest of nothing at all, which everybody knows.
    empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    words = dict(rule.split(" ", 1) for rule in policy("", "").split("; "))
    assert words["default-src"] == "'none'" and "unsafe" not in policy("a", "b")
    assert words["script-src"] == words["style-src"] == f"'sha256-{empty}'"


def test_the_browser_shows_the_numbers_and_the_completions_of_every_run(tmp_path: Path):
    assert cli.main(["report", *map(str, two_runs(tmp_path)), "--out", str(tmp_path / "r.html")]) == 0
    seen = opened(tmp_path / "r.html", tmp_path / "chromium")
    final = [seen.one("td", data_run=str(n), data_metric="accuracy/heldout").text for n in (0, 1)]
    assert final == ["75.0 % (70.0 to 80.0)", "50.0 % (45.0 to 55.0)"]
    # 2 runs with 2 steps of 5 + 2 completions.
    count = seen.one("p", id="count")
    assert (count.attributes["data-shown"], count.text) == ("28", "28 of 28 completions")
    assert len(seen.all("article")) - len(_static(seen)) == 28
    assert "hidden" in seen.one("div", id="static").attributes
    assert "hidden" not in seen.one("form", id="browser").attributes
    assert seen.requests == [] and seen.console == ""  # a refused style or script would be named on the console


def _static(seen: Any) -> list[Any]:
    """The articles that are there without the script: they stand after the list."""
    begin = next(n for n, e in enumerate(seen.elements) if e.attributes.get("id") == "static")
    return [e for e in seen.elements[begin:] if e.tag == "article"]


@pytest.mark.parametrize(
    ("fragment", "number", "first"),
    [
        ("set=heldout&which=worst&search=SA", 8, "held says 0"),
        ("run=second&which=best", 12, "said 3 in step 2"),
        ("which=disagreement&step=newest", 2, "said 3 in step 4"),
        ("which=truncated&search=ask%200", 0, ""),
    ],
    ids=["worst", "best", "disagreement", "nothing"],
)
def test_a_view_can_be_linked(fragment: str, number: int, first: str, tmp_path: Path):
    assert cli.main(["report", *map(str, two_runs(tmp_path)), "--out", str(tmp_path / "r.html")]) == 0
    seen = opened(tmp_path / "r.html", tmp_path / "chromium", fragment=fragment)
    assert seen.one("p", id="count").attributes["data-shown"] == str(number)
    shown = seen.all("article")[:number]
    assert [first in article.text for article in shown[:1]] == [True] * bool(number)
    assert seen.console == ""


def test_without_scripts_some_completions_and_all_numbers_are_there(tmp_path: Path):
    folder, _ = two_runs(tmp_path)
    assert cli.main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text("utf-8")
    still, script = tmp_path / "still.html", text[text.rindex("<script>") : text.rindex("</body>")]
    still.write_text(text.replace(script, ""), encoding="utf-8")
    seen = opened(still, tmp_path / "chromium")
    assert "hidden" not in seen.one("div", id="static").attributes
    assert "hidden" in seen.one("form", id="browser").attributes
    # The scored of the newest step: 4 of training, of which the worst three and the best three are all, and 2 held out.
    assert len(seen.all("article")) == 6 and seen.all("figure")


def hostile_run(tmp_path: Path) -> Path:
    """Everything that a run says is an attack."""
    attack = HOSTILE[1]
    rows = [sample_of(4, n, 0.5, prompt=text, completion=text) for n, text in enumerate(HOSTILE)]
    rows[0] |= {"components": {text: 1.0 for text in HOSTILE[:3]}, "statuses": {attack: attack}, "answer": attack}
    rows += [held_out(4, 0, 1.0, set=HOSTILE[0]), held_out(4, 0, 1.0, phase=HOSTILE[1])]
    metrics = metrics_of(0.75, **{f"accuracy/{HOSTILE[0]}": 0.5, f"accuracy/heldout[{attack}]": 0.5, HOSTILE[2]: 1.0})
    settings = {"name": HOSTILE[0], "sampling.max_tokens": attack, **{text[:50]: text[:50] for text in HOSTILE}}
    times = [{"phase": attack, "step": 1, attack: 1.0}]
    origin = {"file": attack, "variant": HOSTILE[0], "assignments": list(HOSTILE[:5])}
    name = "<img src=x onerror=alert(1)>"
    return write_run(tmp_path / name, metrics, rows, settings=settings, timing=times, origin=origin, **{attack: attack})


def test_nothing_that_a_run_says_runs_or_calls_anybody(tmp_path: Path):
    folder = hostile_run(tmp_path)
    assert cli.main(["report", str(folder), "--most", "20"]) == 0
    path = folder / "report.html"
    text = path.read_text("utf-8")
    assert len(text) < 500_000 and not set(text) & set("\x00\x07\x1b\u202e\u2066\u2028\ud800")
    seen = opened(path, tmp_path / "chromium", fragment="search=" + "%3Cimg src=x onerror=alert(1)%3E&which=all")
    assert seen.all("title")[0].text.startswith("<img src=x onerror=alert(1)>")
    assert seen.requests == [] and seen.console == ""
    for tag in ("img", "image", "iframe", "link", "base", "object"):
        assert seen.all(tag) == []
    assert len(seen.all("script")) == 2 and len(seen.all("style")) == 1
    assert [name for e in seen.elements for name in e.attributes if name.startswith("on") or name == "style"] == []
    assert all(re.fullmatch(r"#[\w-]+", str(e.attributes.get("href"))) for e in seen.all("a"))
    again = opened(path, tmp_path / "again")
    assert again.one("p", id="count").attributes["data-shown"] == str(len(HOSTILE) + 2)
    said = [pre.text for pre in again.all("pre")]
    assert HOSTILE[0] in said and "␛]0;owned␇␛[2J" in said and "abc⟨U+202E⟩cba⟨U+2066⟩" in said
    assert "nul␀half⟨U+D800⟩" in said


def test_a_missing_browser_fails_a_test_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        program()


def test_the_watch_sees_what_a_careless_page_does(tmp_path: Path):
    careless = tmp_path / "careless.html"
    texts = "".join(text.replace("\ud800", "") for text in HOSTILE[:5])
    careless.write_text(f"<!doctype html><title>mine</title><p>{texts}</p>", encoding="utf-8")
    seen = opened(careless, tmp_path / "chromium")
    assert "owned" in [title.text for title in seen.all("title")]
    assert {f"{OUTSIDE}/{name}" for name in ("img", "css", "import", "frame")} <= set(seen.requests)
    strict = tmp_path / "strict.html"
    rule = policy("", "").replace('"', "")
    strict.write_text(f'<meta http-equiv="Content-Security-Policy" content="{rule}"><p>{texts}</p>', encoding="utf-8")
    seen = opened(strict, tmp_path / "strict")
    assert "owned" not in [title.text for title in seen.all("title")]
    assert seen.requests == [] and "Content Security Policy" in seen.console


def test_numbers_that_nobody_can_work_with_are_left_out(tmp_path: Path):
    huge = {"entropy": 10**400, "grad_norm": -1e308, "loss": 1e308, "kl/ref": True}
    row = sample_of(4, 0, 1.0, components={"accuracy": 10**400}, advantage=10**400)
    rows = [row, {**row, "reward": 10**400}]
    times = [{"phase": "grpo", "step": 4, "seconds": 10**400, "attempt": 10**400}]
    folder = write_run(tmp_path / "huge", [*metrics_of(0.5), {"phase": "grpo", "step": 5, **huge}], rows, timing=times)
    assert cli.main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text("utf-8")
    assert re.findall(r"(?i)\b(?:nan|inf|infinity)\b", text) == []


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path):
    folder = write_run(tmp_path / "new", [], [])
    (folder / "metrics.jsonl").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert "No GRPO step has been recorded yet." in (folder / "report.html").read_text("utf-8")


def test_a_page_needs_no_compiler(tmp_path: Path):
    folder, _ = two_runs(tmp_path)
    program = (
        "import sys; from grpo_jax import cli\n"
        "assert cli.main(['report', sys.argv[1]]) == 0 and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True)
