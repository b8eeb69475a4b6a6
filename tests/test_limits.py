"""The sizes and habits that keep the house readable (docs/design.md, section 9 and CONTRIBUTING.md), as tests.

A limit that is met by an exception is no limit: exceptions are listed here by name with their reason, and a listed one
that is no longer needed fails too.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES_A_FILE = 400
LINES_A_BODY = 50
LINES_A_BODY_HARD = 80
POSITIONAL = 6
ARGUMENTS = 12
LINES_OF_THE_READABLE_TWIN = 200

DATA_TABLES: dict[str, str] = {}  # path -> what table it is; such a file may be longer than LINES_A_FILE
LONG_BODIES: dict[str, str] = {}  # "path::function" -> why it is one thought; never more than LINES_A_BODY_HARD

FORBIDDEN_MODULES = {"base", "common", "core", "helper", "helpers", "manager", "misc", "tools", "util", "utils"}

# Layer 1, where a call states the whole of a variant: `ppo_clip(stats, batch, low=0.2, high=0.2)`.
HYPER_PARAMETERS_BY_KEYWORD = ("groups", "advantages", "metrics", "objectives", "rewards/tokens")
SCALARS = {"bool", "float", "int"}

SUPPRESSION = re.compile(
    r"#\s*(noqa|type:\s*ignore|pyright:|mypy:|pylint:|ruff:|fmt:|isort:|yapf:|nosec|pragma)", re.IGNORECASE
)
UNFINISHED = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
SKIPS = {"importorskip", "skip", "skipif", "xfail"}

# A reader has the repository and nothing else: no ticket by number, no path of the machine where a line was written.
ELSEWHERE = re.compile(
    r"\b(issue|ticket|session)s? #?\d|(?<![\w.$~/:-])/(home|root|work|mnt|opt|scratch|Users)/\w", re.IGNORECASE
)
TEXTS = ("*.md", "*.toml", "*.txt", "Makefile", ".ci/*", "docs/**/*.md", "**/*.py", "**/*.json")
FOLDERS = ("grpo_jax", "experiments", "benchmarks", "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[tuple[str, Function, bool]]:
    """(qualified name, function, is a method), functions inside functions included."""

    def visit(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield prefix + child.name, child, in_class
                yield from visit(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.", True)
            else:
                yield from visit(child, prefix, in_class)

    yield from visit(tree, "", False)


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the end, blank lines and comments included."""
    body = function.body
    documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body = body[1:] if documented else body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_long_bodies(path: str, tree: ast.Module, listed: dict[str, str]) -> list[str]:
    found = []
    for name, function, _ in functions(tree):
        lines, key = body_lines(function), f"{path}::{name}"
        if lines > LINES_A_BODY_HARD:
            found.append(f"{key}: {lines} lines, never more than {LINES_A_BODY_HARD}")
        elif lines > LINES_A_BODY and key not in listed:
            found.append(f"{key}: {lines} lines, more than {LINES_A_BODY}: split it, or list it here with the reason")
        elif lines <= LINES_A_BODY and key in listed:
            found.append(f"{key}: {lines} lines, listed here without need")
    return found


def too_many_arguments(path: str, tree: ast.Module) -> list[str]:
    found = []
    for name, function, method in functions(tree):
        static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
        positional = len(function.args.posonlyargs) + len(function.args.args) - (method and not static)
        total = positional + len(function.args.kwonlyargs)
        if positional > POSITIONAL or total > ARGUMENTS:
            found.append(f"{path}::{name}: {positional} positional, {total} in all")
    return found


def positional_hyper_parameters(path: str, tree: ast.Module) -> list[str]:
    """Positional parameters of public top-level functions that are plain scalars by annotation or have a default."""
    found = []
    for name, function, method in functions(tree):
        if method or name.startswith("_") or "." in name:
            continue
        positional = [*function.args.posonlyargs, *function.args.args]
        defaulted = positional[len(positional) - len(function.args.defaults) :]
        for argument in positional:
            scalar = argument.annotation is not None and ast.unparse(argument.annotation) in SCALARS
            if scalar or argument in defaulted:
                found.append(f"{path}::{name}: {argument.arg} has to be keyword-only")
    return found


def comments(text: str) -> Iterator[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def suppressions(text: str) -> list[str]:
    return [comment for comment in comments(text) if SUPPRESSION.search(comment) or UNFINISHED.search(comment)]


def skips(tree: ast.Module) -> list[str]:
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in SKIPS)
    return [
        ast.unparse(node) for node in attributes if ast.unparse(node.value) in {"pytest", "pytest.mark", "unittest"}
    ]


def elsewhere(text: str) -> list[str]:
    return [match.group() for match in ELSEWHERE.finditer(text)]


def has_code(tree: ast.Module) -> bool:
    """Whether a module defines anything of its own: a package that only re-exports needs no test."""
    return any(isinstance(node, Function | ast.ClassDef) for node in tree.body)


@pytest.fixture(scope="module")
def trees(sources: dict[str, str]) -> dict[str, ast.Module]:
    return {path: ast.parse(text) for path, text in sources.items()}


@pytest.fixture(scope="module")
def library(trees: dict[str, ast.Module]) -> dict[str, ast.Module]:
    return {path: tree for path, tree in trees.items() if not path.startswith("tests/")}


def test_no_file_is_long(sources: dict[str, str]):
    lengths = {path: len(text.splitlines()) for path, text in sources.items() if not path.startswith("tests/")}
    assert {path: n for path, n in lengths.items() if n > LINES_A_FILE and path not in DATA_TABLES} == {}
    assert {path for path in DATA_TABLES if lengths.get(path, 0) <= LINES_A_FILE} == set()


def test_the_readable_twin_is_short(sources: dict[str, str]):
    assert len(sources["experiments/minimal.py"].splitlines()) <= LINES_OF_THE_READABLE_TWIN


def test_no_body_is_long(library: dict[str, ast.Module]):
    assert [line for path, tree in library.items() for line in too_long_bodies(path, tree, LONG_BODIES)] == []
    known = {f"{path}::{name}" for path, tree in library.items() for name, _, _ in functions(tree)}
    assert LONG_BODIES.keys() - known == set()


def test_no_function_takes_many_arguments(library: dict[str, ast.Module]):
    assert [line for path, tree in library.items() for line in too_many_arguments(path, tree)] == []


def test_hyper_parameters_are_given_by_name(library: dict[str, ast.Module]):
    starts = tuple(f"grpo_jax/{name}{end}" for name in HYPER_PARAMETERS_BY_KEYWORD for end in (".py", "/"))
    layer = {path: tree for path, tree in library.items() if path.startswith(starts)}
    assert [line for path, tree in layer.items() for line in positional_hyper_parameters(path, tree)] == []


def test_every_module_is_named_for_what_it_is_about(sources: dict[str, str]):
    parts = {path: set(Path(path).with_suffix("").parts) for path in sources}
    assert {path for path, names in parts.items() if names & FORBIDDEN_MODULES} == set()


def test_every_module_has_its_test_in_the_same_place(trees: dict[str, ast.Module]):
    modules = [Path(path) for path, tree in trees.items() if path.startswith("grpo_jax/") and has_code(tree)]
    named = [path for path in modules if not path.stem.startswith("__")]
    tests = {path: Path("tests", *path.parts[1:-1], f"test_{path.name}").as_posix() for path in named}
    assert {path.as_posix() for path, test in tests.items() if test not in trees} == set()


def test_nothing_is_suppressed_or_left_unfinished(sources: dict[str, str]):
    found = {path: suppressions(text) for path, text in sources.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_test_is_skipped(trees: dict[str, ast.Module]):
    found = {path: skips(tree) for path, tree in trees.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_every_word_can_be_understood_with_the_repository_alone(root: Path):
    above = {path for pattern in TEXTS if "**" not in pattern for path in root.glob(pattern)}
    below = {path for folder in (*FOLDERS, "docs") for pattern in TEXTS for path in (root / folder).glob(pattern)}
    files = sorted(path for path in above | below if path.is_file() and path != Path(__file__).resolve())
    assert {"README.md", "Makefile", "pyproject.toml", "tests/conftest.py"} <= {
        p.relative_to(root).as_posix() for p in files
    }
    found = {path.relative_to(root).as_posix(): elsewhere(path.read_text(encoding="utf-8")) for path in files}
    assert {path: words for path, words in found.items() if words} == {}


def test_links_of_the_documents_lead_somewhere(root: Path):
    documents = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    links = {(d, target) for d in documents for target in re.findall(r"\]\(([^)#\s]+)", d.read_text(encoding="utf-8"))}
    local = {(d, target) for d, target in links if "://" not in target and not target.startswith("mailto:")}
    missing = {(d.name, target) for d, target in local if not (d.parent / target).exists()}
    outside = {(d.name, target) for d, target in local if not (d.parent / target).resolve().is_relative_to(root)}
    assert missing | outside == set()


def body_of(lines: int) -> str:
    return "def f(x):\n    '''Docstring\n    of two lines.'''\n" + "    x = x\n" * lines


@pytest.mark.parametrize(
    ("lines", "listed", "complaints"),
    [(50, False, 0), (51, False, 1), (51, True, 0), (80, True, 0), (81, True, 1), (50, True, 1)],
)
def test_a_long_body_is_found(lines: int, listed: bool, complaints: int):
    reasons = {"m.py::f": "a reason"} if listed else {}
    assert len(too_long_bodies("m.py", ast.parse(body_of(lines)), reasons)) == complaints


def test_a_long_body_inside_a_class_or_a_function_is_found():
    method = "class A:\n    def f(self):\n" + "        x = 1\n" * 81
    inner = "def g():\n    def f():\n" + "        x = 1\n" * 81
    assert [line.split(":")[2] for line in too_long_bodies("m.py", ast.parse(method), {})] == ["A.f"]
    assert {line.split(":")[2] for line in too_long_bodies("m.py", ast.parse(inner), {})} == {"g", "g.f"}


@pytest.mark.parametrize(
    ("code", "complaints"),
    [
        ("def f(a, b, c, d, e, f): pass", 0),
        ("def f(a, b, c, d, e, f, g): pass", 1),
        ("def f(a, b, c, d, e, f, *, g, h, i, j, k, l): pass", 0),
        ("def f(a, b, c, d, e, f, *, g, h, i, j, k, l, m): pass", 1),
        ("class A:\n    def f(self, a, b, c, d, e, f): pass", 0),
        ("class A:\n    @staticmethod\n    def f(a, b, c, d, e, f, g): pass", 1),
        ("def f(a, b, /, c, d, e, f, g): pass", 1),
    ],
)
def test_many_arguments_are_found(code: str, complaints: int):
    assert len(too_many_arguments("m.py", ast.parse(code))) == complaints


@pytest.mark.parametrize(
    ("code", "complaints"),
    [
        ("def f(stats, batch, *, low: float, high: float = 0.2): pass", 0),
        ("def f(stats, batch, low: float): pass", 1),
        ("def f(stats, batch, low=0.2): pass", 1),
        ("def _f(x, low: float): pass", 0),
        ("def f(x):\n    def count(token: int): pass", 0),
    ],
)
def test_a_positional_hyper_parameter_is_found(code: str, complaints: int):
    assert len(positional_hyper_parameters("m.py", ast.parse(code))) == complaints


@pytest.mark.parametrize("words", ["noqa", "noqa: E501", "type: ignore", "pyright: basic", "fmt: off", "TODO later"])
def test_a_suppression_is_found(words: str):
    assert len(suppressions(f"x = 1  # {words}\n")) == 1
    assert suppressions(f"x = '# {words}'  # a comment\n") == []


@pytest.mark.parametrize(
    "code", ["@pytest.mark.skip\ndef f(): pass", "@pytest.mark.xfail(strict=True)\ndef f(): pass", "pytest.skip('x')"]
)
def test_a_skip_is_found(code: str):
    assert len(skips(ast.parse(code))) == 1
    assert skips(ast.parse("x.skip(1)\n@pytest.mark.slow\ndef f(): pass")) == []


@pytest.mark.parametrize(
    "text", ["see issue #12", "Issue 3", "in session 4", "reads /home/someone/data", "(`/mnt/notes`)"]
)
def test_a_word_from_elsewhere_is_found(text: str):
    assert len(elsewhere(text)) == 1


@pytest.mark.parametrize(
    "text", ["an issue", "https://host/home/page", "./work/x", "a session of 3 hours", "tokens/root/x"]
)
def test_a_word_that_only_looks_foreign_passes(text: str):
    assert elsewhere(text) == []
