"""What the package needs is what it declares: without any extra, all of it is imported and trains."""

import os
import subprocess
import sys
from pathlib import Path

ABSENT = ("huggingface_hub", "jinja2", "safetensors", "tokenizers", "torch", "transformers")
SCRIPT = """
import importlib, pkgutil, sys
from dataclasses import replace


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was found")

import grpo_jax
from tests.system.small_run import PLAIN

for module in pkgutil.walk_packages(grpo_jax.__path__, "grpo_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
small = replace(PLAIN, warm_start=None, train=replace(PLAIN.train, steps=1))
print("steps", grpo_jax.run(small, run_dir=sys.argv[1]).steps)
"""


def test_the_package_is_imported_and_trains_without_any_extra(root: Path, tmp_path: Path):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), *ABSENT]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps 1" in done.stdout
