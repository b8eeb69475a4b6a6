"""The completions of a page: as data for its script, and some of them as markup for who reads without scripts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.report.choice import pick, reward_of
from grpo_jax.report.markup import data_block, esc, shortened, visible
from grpo_jax.report.runs import Run
from grpo_jax.report.sets import number_of
from grpo_jax.report.words import finite

LONGEST = 4000
"""Characters of a prompt or a completion; more are cut out of the middle."""
LONGEST_WORD = 200
"""Characters of an answer or the name of a component."""
_ALWAYS = {"run", "set", "phase", "step"}
STATIC = 3
"""Completions of a kind that stand in the page itself, for each run."""


def _word(value: object) -> str:
    return shortened(str(value), LONGEST_WORD)


def entry(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A record of `samples.jsonl` of run `number` as the script reads it: text made visible, what is usual left out."""
    worth = reward_of(row)
    components, statuses = row.get("components"), row.get("statuses")
    scores = components.items() if isinstance(components, Mapping) else ()
    states = statuses.items() if isinstance(statuses, Mapping) else ()
    values = [[_word(name), finite(value) if math.isfinite(finite(value)) else None] for name, value in scores]
    told = {
        "run": number,
        "set": _word(row["set"]),
        "phase": _word(row["phase"]),
        "step": row["step"],
        "prompt": shortened(str(row.get("prompt", "")), LONGEST),
        "completion": shortened(str(row.get("completion", "")), LONGEST),
        "reward": worth if math.isfinite(worth) else None,
        "summed": "reward" not in row,  # nobody weighed the components of this completion: `reward` is their sum
        "components": values,
        "statuses": [[_word(name), _word(state)] for name, state in states if state != "ok"],
        "answer": _word(row["answer"]) if row.get("answer") else None,
        "truncated": not row.get("stopped", True),
        "invalid": not row.get("valid", True),
        "disagreement": bool(row.get("disagreement")),
        "facts": _facts(row),
    }
    return {name: value for name, value in told.items() if name in _ALWAYS or not _usual(value)}


def _usual(value: object) -> bool:
    return value is None or value is False or value == "" or value == []


def _facts(row: Mapping[str, Any]) -> str:
    """Where a completion stands among the others, in words."""
    known = {"tokens": "length", "draw": "draw", "sample": "sample", "group": "group", "advantage": "advantage"}
    found = {label: number_of(row, name) for label, name in known.items()}
    return ", ".join(
        f"{label} {value:.3g}" if label == "advantage" else f"{label} {value:.0f}"
        for label, value in found.items()
        if math.isfinite(value)
    )


def block(runs: Sequence[Run]) -> str:
    """The data of the script."""
    described = [
        {"label": run.label, "verifiers": [visible(name) for name in run.verifiers if len(run.verifiers) > 1]}
        for run in runs
    ]
    return data_block(
        "data", {"runs": described, "samples": [entry(n, row) for n, run in enumerate(runs) for row in run.samples]}
    )


def kept(runs: Sequence[Run]) -> str:
    """How many of the completions are here, in sentences."""
    out = []
    for run in runs:
        parts = [
            f"{there.kept:,} of {there.rows:,} of {_word(name)} ({there.kept_steps:,} of {len(there.steps):,} steps)"
            for name, there in run.recorded.items()
        ]
        said = esc(", ".join(parts)) or "none were recorded"
        out.append(f"<li>{esc(run.label)}: {said}</li>")
    return (
        "<p>Of each set and step the worst, the best, those in trouble and some of the rest are kept; the others are in"
        f" samples.jsonl.</p><ul>{''.join(out)}</ul>"
    )


def static(runs: Sequence[Run]) -> str:
    """Some completions as markup: of each set of each run the worst and the best of its newest step."""
    out = []
    for number, run in enumerate(runs):
        for name in run.recorded:
            rows = [row for row in run.samples if row["set"] == name]
            newest = [row for row in rows if (row["phase"], row["step"]) == (rows[-1]["phase"], rows[-1]["step"])]
            worst, best = (pick(newest, which=which)[:STATIC] for which in ("worst", "best"))
            chosen = {id(row): row for row in (*worst, *reversed(best))}
            out += [_article(run.label, entry(number, row)) for row in chosen.values()]
    return "".join(out)


def _article(label: str, told: Mapping[str, Any]) -> str:
    """The same as the script makes of an entry."""
    worth = told.get("reward")
    head = [label, f"{told['set']}, {told['phase'].replace('_', ' ')} step {told['step']}"]
    head += ["no score" if worth is None else f"{'sum' if told.get('summed') else 'reward'} {worth:.3g}"]
    head += [f"{name} {'-' if value is None else format(value, '.3g')}" for name, value in told.get("components", ())]
    head += [f"{name}: {state}" for name, state in told.get("statuses", ())]
    head += [f"answer {told['answer']}"] if "answer" in told else []
    head += ["cut off"] * told.get("truncated", False) + ["verifiers disagree"] * told.get("disagreement", False)
    words = " · ".join(esc(part) for part in head)
    asked, said = esc(told.get("prompt", "")), esc(told.get("completion", ""))
    texts = f'<pre class="prompt">{asked}</pre><pre>{said}</pre>'
    return f'<article class="sample"><p class="head">{words}</p>{texts}</article>\n'
