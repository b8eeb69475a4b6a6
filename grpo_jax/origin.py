"""What `config.json` says of a run: its settings, and the file it was started from. Nothing here imports jax."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
FORMAT = 1
"""Of the files in a run folder; a change that an older version would misread raises it."""


@dataclass(frozen=True)
class Origin:
    """How the experiment of a run is made again: its file, the variant, and what the command line changed."""

    file: str
    variant: str | None = None
    assignments: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What `config.json` stores of it."""
        return {"file": self.file, "variant": self.variant, "assignments": list(self.assignments)}


def held(run: Path) -> dict[str, Any]:
    """The content of the `config.json` of the run in the folder `run`. Raises ValueError where there is no run."""
    if not (run / CONFIG).is_file():
        raise ValueError(
            f"RUN: got {run}, which holds no run (no {CONFIG}); allowed is the folder of one: check the path, for"
            " instance runs/quickstart"
        )
    return stored(run / CONFIG)


def stored(path: Path) -> dict[str, Any]:
    """The content of the `config.json` at `path`; a ValueError where it is damaged or of a format to come."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        config = None
    written = config.get("format", FORMAT) if isinstance(config, dict) else FORMAT
    if isinstance(written, int) and written > FORMAT:
        raise ValueError(
            f"run_dir: {path} has format {written}, which a newer grpo-jax wrote; allowed are up to {FORMAT}: update"
            " grpo-jax, or use another --run-dir"
        )
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("settings", "versions")):
        raise ValueError(
            f"run_dir: {path} is damaged or was edited; allowed is the file that the run wrote: restore it, or use"
            " --fresh to move the run aside"
        )
    return config


def origin_of(
    run: Path, *, file: str | None = None, variant: str | None = None, assignments: Sequence[str] = ()
) -> Origin:
    """How to make the experiment of `run` again: as its `config.json` says, but for what is given here.

    Raises ValueError for a run that was started from Python, and for one whose experiment lies inside its own folder:
    a folder that came from elsewhere must not bring the program with it that looks at it.
    """
    kept = held(run).get("origin")
    kept = kept if isinstance(kept, Mapping) else {}
    named = kept.get("file")
    if file is None and not isinstance(named, str):
        raise ValueError(
            f"RUN: got {run}, which was started from Python and does not know its file; allowed is one with an"
            " EXPERIMENT of the same settings: say which with --file FILE"
        )
    if file is None and Path(str(named)).resolve().is_relative_to(run.resolve()):
        raise ValueError(
            f"RUN: got {run}, whose experiment {named} lies in the run itself; allowed is a file outside, or one that"
            " you name: look at it first, then say --file FILE"
        )
    lines = kept.get("assignments")
    told = kept.get("variant")
    return Origin(
        file=file or str(named),
        variant=variant or (told if isinstance(told, str) else None),
        assignments=tuple(assignments) or tuple(str(line) for line in (lines if isinstance(lines, list) else ())),
    )
