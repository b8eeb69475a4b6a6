"""The pages of equations: every function they name is there with the defaults they state; tables are the code's."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest

from grpo_jax.advantages import ADVANTAGES, fields_read
from grpo_jax.objectives import AGGREGATIONS, ESTIMATORS

PAGES = ("", "/advantages", "/divergences", "/aggregations", "/losses", "/corrections", "/groupings")
FAMILIES = ("advantages", "groups", "objectives", "rewards", "updates")
SPAN = re.compile(r"(?<![`$])`([^`$]+)`(?!`)")


def text_of(root: Path, page: str) -> str:
    return (root / f"docs/objectives{page}.md").read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """The code of a page that names a function of one of the families."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = [" ".join(span.split()) for span in SPAN.findall(plain)]
    return [span for span in found if re.match(rf"(?:{'|'.join(FAMILIES)})\.\w", span)]


def resolved(path: str) -> Any:
    """What `path` names below `grpo_jax`."""
    family, *names = path.split(".")
    module = importlib.import_module(f"grpo_jax.{family}")
    if len(names) > 1:
        module = importlib.import_module(f"grpo_jax.{family}.{names[0]}")
        names = names[1:]
    return reduce(getattr, names, module)


def called(function: Any) -> str:
    """The name of a function that is a default, or its canonical literal."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", repr(function))


@pytest.mark.parametrize("page", PAGES)
def test_every_function_is_there_with_these_defaults(root: Path, page: str):
    found = spans(text_of(root, page))
    assert len(found) > 3
    for span in found:
        tree = ast.parse(span, mode="eval").body
        target = resolved(ast.unparse(tree.func if isinstance(tree, ast.Call) else tree).partition("[")[0])
        if isinstance(tree, ast.Call):
            assert not tree.args, span
            known = inspect.signature(target).parameters
            for keyword in tree.keywords:
                assert keyword.arg in known, span
                default = known[str(keyword.arg)].default
                named = isinstance(keyword.value, ast.Name)
                stated = ast.unparse(keyword.value) if named else ast.literal_eval(keyword.value)
                assert stated == (called(default) if named else default), span


def keywords(function: Callable) -> str:
    """The hyper-parameters with their defaults, as code."""
    parameters = inspect.signature(function).parameters.values()
    bound = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    required = [f"`{p.name}`" for p in bound if p.default is p.empty]
    default = [
        f"`{p.name}={called(p.default) if callable(p.default) else repr(p.default)}`"
        for p in bound
        if p.default is not p.empty
    ]
    return ", ".join(required + default) or "none"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(list(head)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_advantages() -> str:
    rows = [
        (f"`{name}`", ", ".join(f"`{field}`" for field in fields_read(f)) or "outcomes", keywords(f))
        for name, f in ADVANTAGES.items()
    ]
    return table(("strategy", "reads", "keywords"), rows)


def of_functions(functions: Mapping[str, Callable]) -> str:
    return table(
        ("name", "function", "keywords"),
        [(f"`{n}`", f"`objectives.{called(f)}`", keywords(f)) for n, f in functions.items()],
    )


TABLES = {
    "/advantages": ("advantages", of_advantages),
    "/aggregations": ("aggregations", partial(of_functions, AGGREGATIONS)),
    "/divergences": ("estimators", partial(of_functions, ESTIMATORS)),
}


@pytest.mark.parametrize("page", TABLES)
def test_its_table_is_that_of_the_code(root: Path, page: str):
    name, made = TABLES[page]
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", text_of(root, page), re.DOTALL)
    assert match and match[1].strip() == made(), f"write between the marks of {page}:\n{made()}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(root: Path, page: str):
    text = text_of(root, page)
    here = root / f"docs/objectives{page}.md"
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)):
        other = here if not target else (here.parent / target).resolve()
        assert other.exists(), target
        heads = [
            re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
            for h in re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        ]
        assert not anchor or anchor in heads, f"{target}#{anchor}"
