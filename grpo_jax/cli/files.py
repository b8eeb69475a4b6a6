"""From the file of an experiment to the experiment that a command line asks for."""

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from grpo_jax.endings import Unloadable
from grpo_jax.lifeline import BadData, say

if TYPE_CHECKING:
    from grpo_jax.experiment import Experiment


def experiment_of(file: str, variant: str | None, assignments: Sequence[str]) -> "Experiment":
    """The experiment of `file`, or its `variant`, with the settings that `assignments` change.

    Raises ValueError for a file, a variant or a setting that is not there.
    """
    from grpo_jax.arguments import made
    from grpo_jax.overrides import repeated

    value = _chosen(load(Path(file)), variant, file)
    for path, texts in repeated(assignments).items():
        say(f"--set {path}: got {', '.join(texts)}; the last counts")
    with told_by_line(Path(file)):
        return made(value, assignments, what=f"{file}: {f'VARIANTS[{variant!r}]' if variant else 'EXPERIMENT'}")


@contextmanager
def told_by_line(path: Path) -> Iterator[None]:
    """Errors that leave a function of the file `path` are told with the line of the file that they came from."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if _explained(error) or not any(frame.filename == str(path.resolve()) for frame in frames):
            raise
        raise Unloadable(_blamed(path.resolve(), error)) from error


def load(path: Path) -> ModuleType:
    """The module in the file `path`, imported under the name of the file.

    A script that is run itself goes by the same name in descriptions, so both ways continue each other's runs. Raises
    ValueError for a file that is not there, or whose name hides another module.
    """
    if not path.is_file():
        raise ValueError(
            f"FILE: got {path}, which is no file; allowed is a Python file with an EXPERIMENT: check the path"
        )
    path, name = path.resolve(), path.stem
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) != str(path):
        raise ValueError(
            f"FILE: got {path}, whose name is that of the module {name!r}; allowed is a name of its own: rename the"
            " file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"FILE: got {path}, which Python cannot import; allowed is a file that ends in .py: rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, BadData) or not isinstance(error, Exception | SystemExit) or _explained(error):
            raise
        raise Unloadable(_blamed(path, error)) from error
    return module


def _explained(error: BaseException) -> bool:
    """Whether `error` is a ValueError that this package raised, which says itself what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])
    return ours and isinstance(error, ValueError) and not isinstance(error, UnicodeError)


def _blamed(path: Path, error: BaseException) -> str:
    """Which line of the file `path` led to `error`, and what that was."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, what = error.lineno, f"{error.msg}: {(error.text or '').strip()}"
    elif isinstance(error, OSError) and error.filename == str(path):
        return f"FILE: {path} cannot be read ({error.strerror}); allowed is a Python file: make it readable"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, what = frames[-1].lineno if frames else None, str(error)
    where = f"{path}:{line}" if line else str(path)
    return f"{where}: {type(error).__name__}: {what}; allowed is a file that Python can import: correct it"


def _chosen(module: ModuleType, variant: str | None, file: str) -> object:
    variants = getattr(module, "VARIANTS", {})
    if not isinstance(variants, Mapping):
        raise ValueError(
            f"{file}: VARIANTS is a {type(variants).__name__}, allowed is a mapping from names to experiments: write"
            ' VARIANTS = {"name": Experiment(...)}'
        )
    if variant is None:
        if not hasattr(module, "EXPERIMENT"):
            raise ValueError(
                f"{file}: got no EXPERIMENT, allowed is a file that defines one: write EXPERIMENT = Experiment(...)"
            )
        return module.EXPERIMENT
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, n=1)
        raise ValueError(
            f"--variant: got {variant!r}, allowed {', '.join(map(str, variants)) or 'none, the file has no VARIANTS'}: "
            + (f"did you mean {near[0]!r}?" if near else "choose one of these or leave it out")
        )
    return variants[variant]
