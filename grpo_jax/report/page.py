"""One page of HTML about one run or several: a single file that asks nothing of any other place.

What a run holds (completions, prompts, names, settings) is taken for hostile: it is escaped, what cannot be seen is
made visible, and the policy of the page allows one script and one style, known by their digests, and nothing else.
The script is for browsing completions; curves, tables and some completions are there without it.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from grpo_jax import __version__
from grpo_jax.report import browser, tables
from grpo_jax.report.curves import figure
from grpo_jax.report.markup import details, esc, section
from grpo_jax.report.panels import curves, swatch
from grpo_jax.report.runs import Run, gather
from grpo_jax.report.saving import MARK, check_place, replace
from grpo_jax.report.words import describe_run

MOST = 12
"""Completions of a set and step that go into a page."""
FIGURE, PAGE = "figure.svg", "report.html"
NOTE = (
    "GRPO steps from left to right; left of the dashed line is the warm start. A faint line is what was recorded, a"
    " bold one its running mean; bars at points are intervals at 95 %."
)
WITHOUT_SCRIPT = (
    "The worst and the best of the newest step of each set; with scripts, this is a browser of all that are kept."
)


def write(
    folders: Sequence[Path], *, out: Path | None = None, most: int = MOST, verifiers: Sequence[str] | None = None
) -> list[Path]:
    """Write the page about the runs in `folders`, and return what was written.

    Of one run without `out`: its figure.svg and report.html, in its folder. Else one page: `out`, or report.html in the
    working directory. Raises ValueError for what `gather` refuses, and where a file stands that is no report.
    """
    own = len(folders) == 1 and out is None
    target = folders[0] / PAGE if own else Path(PAGE) if out is None else out
    runs = gather(folders, most=most, verifiers=verifiers)
    check_place(target)
    written = []
    if own:
        figure(folders[0] / FIGURE, runs[0].metrics, title=runs[0].name)
        written.append(folders[0] / FIGURE)
    replace(target, page(runs))
    return [*written, target]


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _part(name: str) -> str:
    return resources.files("grpo_jax.report").joinpath(name).read_text("utf-8")


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with this style and this script: these two, and nothing from anywhere."""
    return (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def page(runs: Sequence[Run]) -> str:
    """The text of the page. Equal runs give equal bytes."""
    style, script = _part("page.css"), _part("page.js")
    names = ", ".join(run.label for run in runs)
    title = f"{names} · grpo-jax" if len(runs) < 4 else f"{len(runs)} runs · grpo-jax"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style, script)}">\n'
        f'{MARK}\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{esc(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_body(runs)}{browser.block(runs)}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _body(runs: Sequence[Run]) -> str:
    first, rest = curves(runs)
    drawn = f'{_legend(runs)}<div class="panels">{first}</div>\n' if first else ""
    more = details("All other metrics", f'<div class="panels">{rest}</div>') if rest else ""
    parts = (
        ("numbers", "Numbers", tables.numbers(runs)),
        ("curves", "Curves", drawn + more + f"<p>{NOTE}</p>\n" if drawn or more else ""),
        ("alerts", "Alerts", tables.alerts(runs)),
        ("samples", "Completions", _samples(runs)),
        ("timing", "Timing", tables.timing(runs)),
        ("settings", "Settings", tables.settings(runs)),
        ("origin", "Origin and versions", tables.origins(runs)),
    )
    links = "".join(f'<a href="#{name}">{esc(title)}</a>' for name, title, content in parts if content)
    return (
        f'<header><h1>{_heading(runs)}</h1>{_words(runs)}<nav aria-label="Parts of this page">{links}</nav></header>\n'
        f"<main>\n{''.join(section(*part) for part in parts)}</main>\n<footer>grpo-jax {esc(__version__)}</footer>\n"
    )


def _heading(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    run = runs[0]
    return esc(run.name) + (f" <small>{esc(run.label)}</small>" if run.label != run.name else "")


def _words(runs: Sequence[Run]) -> str:
    return f"<p>{esc(describe_run(runs[0].metrics))}</p>" if len(runs) == 1 else _legend(runs)


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    return (
        f'<ul class="legend">{"".join(f"<li>{swatch(n)} {esc(run.label)}</li>" for n, run in enumerate(runs))}</ul>\n'
    )


def _samples(runs: Sequence[Run]) -> str:
    """The browser, which the script brings to life, and what stands there without it."""
    if not any(run.samples for run in runs):
        return ""
    fields = "".join(
        f'<label>{esc(label)} <select id="by-{name}"></select></label>'
        for name, label in (("run", "Run"), ("set", "Set"), ("step", "Step"), ("which", "Show"))
    )
    return (
        f'<form id="browser" hidden>{fields}<label class="grow">Search <input id="by-search" type="search"'
        ' autocomplete="off" spellcheck="false"></label><button type="reset">Reset</button></form>\n'
        '<p id="count" role="status" data-shown="0" data-found="0"></p>\n<div id="list"></div>\n'
        '<button id="more" type="button" hidden>Show more</button>\n'
        f'<div id="static"><p>{WITHOUT_SCRIPT}</p>{browser.static(runs)}</div>\n'
        + details("How many are kept", browser.kept(runs))
    )
