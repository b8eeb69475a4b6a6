"""The order of the house: imports point down only (docs/design.md, section 5).

The rule, stated exactly. Every module of the package stands on one step of ``STEPS``. An import may go to a lower step,
or to the same step; the modules of the package form no cycle; no module imports the package itself but for constants of
it, because ``grpo_jax/__init__.py`` stands above everything and re-exports lazily. Importing ``a.b.c`` counts as
importing ``a.b`` too, unless the importing module is inside ``a.b``.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping

import pytest

PACKAGE = "grpo_jax"

# From the ground up. A name stands for a module and, once it has become a package, for all that is in it; the longest
# name that fits decides, so that `rewards.tokens` stands below other rewards. `rewards.__init__` is that file alone.
STEPS = (
    ("0 records", ("types", "masked")),
    (
        "1 mathematics",
        ("groups", "advantages", "metrics", "objectives", "rewards.__init__", "rewards.tokens", "rewards.lengths"),
    ),
    ("2 devices", ("hosts", "sharding")),
    ("2 models", ("models",)),
    ("2 sampling", ("sampling",)),
    (
        "3 training",
        ("train", "updates", "dynamic", "demonstrations", "checkpoint", "lifeline", "journal", "compiled", "memory"),
    ),
    ("4 tasks", ("data", "text", "evaluate", "rewards", "questions", "verdict")),
    ("4 testing", ("testing", "laboratory")),
    (
        "5 runs",
        (
            *("weights", "sanity", "experiment", "overrides", "arguments", "origin"),
            *("folder", "heldout", "samples", "loop", "report", "alerts", "display"),
        ),
    ),
    ("5 looking at runs", ("footprint", "plan", "revisit", "exchange", "show", "ablation", "contrast")),
    ("6 command line", ("endings", "cli", "__main__")),
)
NAMES_OF_THE_PACKAGE_ITSELF = {"STARTED", "__version__"}

# Layers 0 and 1 are array functions: what they may import is listed. Networks, optimisers, files, processes are not.
PURE_STEPS = 2
PURE_STANDARD_LIBRARY = set(
    "collections dataclasses enum functools hashlib inspect itertools math operator re textwrap types typing".split()
)
PURE_PACKAGES = {"chex", "flax.struct", "jax", "jax.nn", "jax.numpy", "jax.scipy.special"}
# Of `jax` itself they see arrays and transformations, not devices.
IMPURE_JAX = {
    "device_put",
    "devices",
    "distributed",
    "experimental",
    "make_mesh",
    "monitoring",
    "process_index",
    "sharding",
}

CORE_DEPENDENCIES = {"chex", "flax", "jax", "numpy", "optax", "orbax", "rich"}
EXTRA_DEPENDENCIES = {"huggingface_hub", "jinja2", "tokenizers"}  # of the extra `hf`: imported inside functions only


def module_name(path: str) -> str:
    """``grpo_jax/objectives/kl.py`` -> ``objectives.kl``; a package is ``objectives.__init__``."""
    return path.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")


def step_of(module: str) -> int | None:
    """Index into ``STEPS`` of the longest name that is `module` or a package around it."""
    fits = [
        (len(n), i) for i, (_, names) in enumerate(STEPS) for n in names if module == n or module.startswith(n + ".")
    ]
    return max(fits)[1] if fits else None


def imported(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Every ``import a.b`` as (a.b, None) and ``from a.b import c`` as (a.b, c), wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def inside(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, packages on the way included."""
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        targets = graph.setdefault(module, set())
        for source, name in imported(tree):
            if source.split(".")[0] != PACKAGE:
                continue
            if source == PACKAGE and name in NAMES_OF_THE_PACKAGE_ITSELF:
                continue
            parts = source.split(".")[1:]
            if name and any(".".join([*parts, name, *end]) in modules for end in ([], ["__init__"])):
                parts.append(name)
            for depth in range(1, len(parts) + 1):
                prefix = ".".join(parts[:depth])
                around = f"{module}.".startswith(f"{prefix}.") and depth < len(parts)
                if not around:
                    targets.add(prefix if prefix in modules else f"{prefix}.__init__")
            if not parts:
                targets.add("__init__")
    return graph


def violations(modules: Mapping[str, ast.Module]) -> list[str]:
    """What breaks the rule of this file, in words."""
    found = []
    graph = inside(modules)
    for module, targets in graph.items():
        if module == "__init__":
            continue
        here = step_of(module)
        if here is None:
            found.append(f"{module} stands on no step: give it one here and in docs/design.md")
            continue
        for target in sorted(targets):
            there = step_of(target)
            if target == "__init__":
                found.append(f"{module} imports {PACKAGE} itself or from it a name that is no module")
            elif target not in modules:
                found.append(f"{module} imports {target}, which does not exist")
            elif there is None or there > here:
                found.append(f"{module} ({STEPS[here][0]}) imports {target}, which stands above it")
    try:
        graphlib.TopologicalSorter({m: t for m, t in graph.items() if m != "__init__"}).prepare()
    except graphlib.CycleError as error:
        found.append(f"cycle: {' -> '.join(error.args[1])}")
    return found


def impurities(modules: Mapping[str, ast.Module]) -> list[str]:
    """Imports and uses of `jax` in layers 0 and 1 that know of devices, files, processes or libraries for networks."""
    found = []
    for module, tree in modules.items():
        step = step_of(module)
        if step is None or step >= PURE_STEPS:
            continue
        for source, name in imported(tree):
            whole = f"{source}.{name}"
            pure = source.split(".")[0] in PURE_STANDARD_LIBRARY | {PACKAGE} or {source, whole} & PURE_PACKAGES
            if not pure:
                found.append(f"{module} imports {whole if name else source}")
            if source == "jax" and name in IMPURE_JAX:
                found.append(f"{module} imports {whole}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
                found += [f"{module} uses jax.{node.attr}"] if node.attr in IMPURE_JAX else []
    return found


def eager(tree: ast.Module) -> list[str]:
    """Modules of the package that a file imports when it is itself imported (outside functions and TYPE_CHECKING)."""
    return [source for source in eagerly_imported(tree) if source.split(".")[0] == PACKAGE]


def eagerly_imported(tree: ast.Module) -> list[str]:
    """Modules, whosever, that a file imports when it is itself imported."""
    found = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [source for source, _ in imported(ast.Module(body=[node], type_ignores=[]))]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting = [statement for statement in waiting if statement not in node.body]
    return found


@pytest.fixture(scope="module")
def modules(sources: dict[str, str]) -> dict[str, ast.Module]:
    trees = {module_name(path): ast.parse(text) for path, text in sources.items() if path.startswith(f"{PACKAGE}/")}
    assert {"__init__", "types"} <= trees.keys(), f"this test looks at the wrong folder: {sorted(trees)}"
    return trees


def snippet(**code: str) -> dict[str, ast.Module]:
    return {name.replace("__in_", "."): ast.parse(text) for name, text in code.items()}


def test_imports_point_down_and_form_no_cycle(modules: dict[str, ast.Module]):
    assert violations(modules) == []


def test_records_and_mathematics_know_neither_devices_nor_files(modules: dict[str, ast.Module]):
    assert impurities(modules) == []


def test_the_package_imports_its_declared_dependencies_only(modules: dict[str, ast.Module]):
    allowed = CORE_DEPENDENCIES | EXTRA_DEPENDENCIES | set(sys.stdlib_module_names) | {PACKAGE}
    foreign = {(m, source) for m, tree in modules.items() for source, _ in imported(tree)}
    assert {(m, source) for m, source in foreign if source.split(".")[0] not in allowed} == set()


def test_what_an_extra_brings_is_imported_when_it_is_used(modules: dict[str, ast.Module]):
    found = {(m, source) for m, tree in modules.items() for source in eagerly_imported(tree)}
    assert {(m, source) for m, source in found if source.split(".")[0] in EXTRA_DEPENDENCIES} == set()


def test_every_folder_of_the_package_is_a_package(modules: dict[str, ast.Module]):
    around = {module.rpartition(".")[0] for module in modules} - {""}
    assert {folder for folder in around if f"{folder}.__init__" not in modules} == set()


def test_importing_the_package_imports_none_of_its_modules(modules: dict[str, ast.Module]):
    assert eager(modules["__init__"]) == []


def test_no_step_names_a_module_twice():
    names = [name for _, names in STEPS for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (
            {"masked": "from grpo_jax.objectives import kl", "objectives__in_kl": "", "objectives__in___init__": ""},
            "above",
        ),
        (
            {
                "models__in_decoder": "import grpo_jax.sampling.cache",
                "sampling__in_cache": "",
                "sampling__in___init__": "",
            },
            "above",
        ),
        ({"hosts": "def f():\n    from grpo_jax import models", "models": ""}, "above"),
        ({"train": "from grpo_jax import run"}, "itself"),
        ({"train": "import grpo_jax"}, "itself"),
        ({"train": "from grpo_jax.nowhere import x"}, "does not exist"),
        ({"misplaced": ""}, "no step"),
        ({"train": "from grpo_jax import checkpoint", "checkpoint": "from grpo_jax.train import f"}, "cycle"),
        (
            {
                "objectives__in_kl": "from grpo_jax import objectives",
                "objectives__in___init__": "from grpo_jax.objectives import kl",
            },
            "cycle",
        ),
        (
            {
                "rewards__in_tokens": "from grpo_jax.rewards import text",
                "rewards__in_text": "",
                "rewards__in___init__": "",
            },
            "above",
        ),
        (
            {
                "metrics": "import grpo_jax.rewards.tokens",
                "rewards__in_tokens": "",
                "rewards__in___init__": "import grpo_jax.rewards.text",
                "rewards__in_text": "",
            },
            "above",
        ),
        ({"testing": "from grpo_jax import loop", "loop": ""}, "above"),
    ],
)
def test_an_import_that_points_up_is_found(code: dict[str, str], complaint: str):
    found = violations(snippet(**code))
    assert found and all(complaint in line for line in found), found


def test_imports_that_point_down_pass():
    code = snippet(
        types="",
        masked="from grpo_jax import types",
        objectives__in_kl="from grpo_jax.masked import mean",
        objectives__in___init__="from grpo_jax.objectives import kl",
        objectives__in_recipes="from grpo_jax.objectives import kl",
        models="from grpo_jax.sharding import spec",
        sharding="import jax",
        cli="from grpo_jax import __version__, objectives",
    )
    assert violations(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "from pathlib import Path",
        "import flax",
        "from flax import linen",
        "import optax",
        "import numpy as np",
        "from jax import sharding",
        "from jax.sharding import Mesh",
        "import jax\nx = jax.devices()",
        "import orbax.checkpoint",
    ],
)
def test_an_impure_import_in_the_mathematics_is_found(code: str):
    assert len(impurities(snippet(masked=code))) == 1
    assert impurities(snippet(train=code)) == []


def test_pure_imports_pass():
    code = "import functools\nimport jax\nimport jax.numpy as jnp\nimport chex\nfrom flax import struct\n"
    code += "from jax import lax\nfrom collections.abc import Callable\nx = jax.nn.softmax"
    assert impurities(snippet(masked=code)) == []


def test_an_eager_import_is_told_from_a_lazy_one():
    assert eager(ast.parse("from grpo_jax.loop import run")) == ["grpo_jax.loop"]
    assert eager(ast.parse("try:\n    import grpo_jax.loop\nexcept ImportError:\n    pass")) == ["grpo_jax.loop"]
    assert eager(ast.parse("if TYPE_CHECKING:\n    from grpo_jax.loop import run")) == []
    assert eager(ast.parse("def __getattr__(name):\n    from grpo_jax.loop import run")) == []
    assert eagerly_imported(ast.parse("import jinja2.sandbox")) == ["jinja2.sandbox"]
    assert eagerly_imported(ast.parse("def f():\n    import jinja2.sandbox")) == []
