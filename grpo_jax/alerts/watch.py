"""A sentence is said once: again only if its cause went away for a while and came back, or has stayed for long."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from grpo_jax.alerts.history import NOTHING, History, Thresholds
from grpo_jax.alerts.rules import ONCE, RULES, SPAN, Rule


class _Said:
    """When a sentence was said, and how many steps its cause has been away since."""

    def __init__(self, step: int) -> None:
        self.step, self.calm = step, 0


class Alerts:
    """The alerts of one run. `settings`, of `experiment.settings`, maps dotted paths to what is set now."""

    def __init__(self, settings: Mapping[str, str] = NOTHING, *, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        keep = max(self.thresholds.window + self.thresholds.recent, self.thresholds.finished, self.thresholds.hopeless)
        self._history = History(settings, max(keep, SPAN) + 1)
        self._said: dict[str, _Said] = {}

    def see(self, record: Mapping[str, Any]) -> list[str]:
        """The sentences that are due after a record of `metrics.jsonl`; usually none."""
        if not self._history.add(record):
            return []
        found = {name: self._asked(name, rule) for name, rule in RULES.items()}
        return [self._named(sentence) for name, sentence in found.items() if self._due(name, sentence) and sentence]

    def _asked(self, name: str, rule: Rule) -> str | None:
        try:
            return rule(self._history, self.thresholds)
        except Exception as error:  # an alert never stops training
            return f"the alert {name!r} could not be worked out ({type(error).__name__}: {error})."

    def _due(self, name: str, sentence: str | None) -> bool:
        now, said, t = self._history.seen, self._said.get(name), self.thresholds
        if sentence is None:
            if said is not None:
                said.calm += 1
            return False
        if said is not None:
            away, said.calm = said.calm, 0
            if name in ONCE or (away < t.calm and now - said.step < t.repeat):
                return False
        self._said[name] = _Said(now)
        return True

    def _named(self, sentence: str) -> str:
        """`sentence` with every [dotted.path] as ``dotted.path (now VALUE)``, or as the path where nothing is known."""

        def value(match: re.Match) -> str:
            path = match[1]
            now = self._history.settings.get(path)
            return path if now is None else f"{path} (now {now})"

        return re.sub(r"\[([a-z_]+\.[a-z_.]+)\]", value, sentence)


def said(
    records: Iterable[Mapping[str, Any]], settings: Mapping[str, str] = NOTHING, *, thresholds: Thresholds | None = None
) -> list[tuple[int, str]]:
    """(step, sentence) for all that a run with these `records` said."""
    alerts = Alerts(settings, thresholds=thresholds)
    return [(int(record.get("step", 0)), sentence) for record in records for sentence in alerts.see(record)]
