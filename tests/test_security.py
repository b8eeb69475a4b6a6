"""Nothing that a model, a dataset or a checkpoint said is ever run: a lint over the syntax tree of every file.

Parsers that evaluate, serialisers that execute, shells and remote code are refused wherever they stand, because the
way from "only on our own strings" to "on a completion" is one refactoring long. Mathematics is read by a grammar of our
own, weights as safetensors, programs of a model in a sandbox of another process.
"""

import ast
from collections.abc import Iterator

import pytest

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    "cloudpickle",
    "dill",
    "jsonpickle",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
    "sympy",
    "telnetlib",
    "_pickle",
}
FORBIDDEN_ATTRIBUTES = {
    "builtins": {"eval", "exec", "compile"},
    "yaml": {"full_load", "load", "load_all", "unsafe_load"},
    "os": {"popen", "system"},
    "torch": {"load"},
    "tempfile": {"mktemp"},
    "pandas": {"eval", "read_pickle"},
}
FORBIDDEN_NAMES = {"parse_expr", "parse_latex", "sympify", "trust_remote_code"}
ARRAY_LOADERS = {"np.load", "numpy.load", "jnp.load", "jax.numpy.load"}


def is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def called(node: ast.Call) -> Iterator[str]:
    """What is wrong with a call."""
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    function = node.func
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
        yield f"{function.id}(...)"
    loads_arrays = isinstance(function, ast.Attribute) and ast.unparse(function) in ARRAY_LOADERS
    if loads_arrays and not is_false(keywords.get("allow_pickle")):
        yield f"{ast.unparse(function)} without allow_pickle=False"
    if "shell" in keywords and not is_false(keywords["shell"]):
        yield "shell=..."
    if "allow_pickle" in keywords and not is_false(keywords["allow_pickle"]):
        yield "allow_pickle=..."


def dangers(tree: ast.Module) -> list[str]:
    """Line and name of whatever in `tree` could run what it reads."""
    found: list[str] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Call):
            names += called(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            refused = FORBIDDEN_ATTRIBUTES.get(node.module, set()) | FORBIDDEN_NAMES
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if alias.name in refused]
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_ATTRIBUTES.get(ast.unparse(node.value), set()) or node.attr in FORBIDDEN_NAMES:
                names.append(ast.unparse(node))
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            names.append(node.id)
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_NAMES:
            names.append(str(node.arg))
        elif isinstance(node, ast.arg) and node.arg in FORBIDDEN_NAMES:
            names.append(node.arg)
        found += [f"line {getattr(node, 'lineno', 0)}: {name}" for name in names]
    return found


def test_nothing_in_the_project_can_run_what_it_reads(sources: dict[str, str]):
    found = {path: dangers(ast.parse(text)) for path, text in sources.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec(completion)",
        "compile(text, 'x', 'exec')",
        "import builtins\nbuiltins.eval('1')",
        "import pickle",
        "from pickle import loads",
        "import dill.source",
        "import sympy",
        "from sympy import Integer",
        "import yaml\nyaml.load(f)",
        "from yaml import unsafe_load",
        "load(path, trust_remote_code=True)",
        "def f(trust_remote_code): pass",
        "sympify(answer)",
        "parser.parse_expr(answer)",
        "import numpy as np\nnp.load(path)",
        "numpy.load(path, allow_pickle=allowed)",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "from os import system",
    ],
)
def test_a_danger_is_found(code: str):
    assert dangers(ast.parse(code)) != []


@pytest.mark.parametrize(
    "code",
    [
        "step.lower(x).compile()",
        "import re\nre.compile('a')",
        "np.load(path, allow_pickle=False)",
        "json.load(file)",
        "yaml.safe_load(text)",
        "subprocess.run(command, shell=False)",
        "evaluate(params)",
        "'eval'",
        "model.eval()",
    ],
)
def test_what_only_looks_like_a_danger_passes(code: str):
    assert dangers(ast.parse(code)) == []
