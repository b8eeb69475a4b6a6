"""What holds in every test: one CPU made to look like eight devices, strict arithmetic, compiled code kept on disk.

JAX reads its environment once, at import, so everything here happens before it. Processes that a test starts inherit
the same environment; one that must see a single device sets its own ``XLA_FLAGS``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

DEVICES = 8
COMPILATION_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
FORCED_DEVICES = "--xla_force_host_platform_device_count"

if "jax" in sys.modules:
    raise pytest.UsageError(
        "jax was imported before tests/conftest.py could configure it (8 devices, strict promotion); "
        "run pytest without the plugin that imports jax, for instance with `-p no:NAME`"
    )

# Flags already set stay, and the last one wins: who asks for another number of devices gets it.
os.environ["XLA_FLAGS"] = f"{FORCED_DEVICES}={DEVICES} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Compiling is most of the time of the suite: keep every program, however small and however quickly compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILATION_CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last lines of all: what a test recorded as its `summary`, whichever worker it ran in."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    for report in [*terminal.stats.get("passed", []), *terminal.stats.get("failed", [])]:
        for name, value in report.user_properties:
            if name == "summary":
                terminal.write_line(str(value))


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sources(root: Path) -> dict[str, str]:
    """Path (from the root, with /) -> text of every Python file that the project wrote."""
    folders = ("grpo_jax", "experiments", "benchmarks", "tests")
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}
