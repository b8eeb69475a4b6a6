"""Parameters in two parts: one that is trained and one that is frozen. Which is which is said by names.

Names are those of `table.flat`, one a layer (``layers/3/query``) whatever the layout, and patterns are those of
`fnmatch`, whose ``*`` stands for any characters, ``/`` included: ``layers/*/query``, ``layers/[01]/*``, ``embed``.
"""

import difflib
import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from grpo_jax.types import Params

LAYERS = "layers"


def join(params: Params, frozen: Params | None) -> Params:
    """Both parts as one tree of parameters; nothing is copied. Without a `frozen` part: `params`.

    Raises ValueError where a name is in both.
    """
    return params if frozen is None else _merged(params, frozen, "")


def _merged(one: Mapping, other: Mapping, path: str) -> dict:
    found = {**one}
    for name, part in other.items():
        mine = found.get(name)
        if mine is None:
            found[name] = part
        elif isinstance(mine, Mapping) and isinstance(part, Mapping):
            found[name] = _merged(mine, part, f"{path}{name}/")
        else:
            raise ValueError(
                f"params: got {path}{name} in the trained part and in the frozen one, allowed is one of them: divide"
                " the parameters with models.divide"
            )
    return found


def divide(params: Params, trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """The parts of `params` whose names `trained` accepts, and all others; nothing is copied.

    A stack of layers is one array and so goes to one side: raises ValueError where `trained` accepts some layers of it.
    """
    return _divided(params, trained, "")


def _divided(tree: Mapping, trained: Callable[[str], bool], path: str) -> tuple[dict, dict]:
    sides: tuple[dict, dict] = ({}, {})
    for name, part in tree.items():
        if isinstance(part, Mapping):
            for side, half in zip(sides, _divided(part, trained, f"{path}{name}/"), strict=True):
                if half:
                    side[name] = half
        else:
            sides[0 if _accepted(f"{path}{name}", part, trained) else 1][name] = part
    return sides


def _accepted(path: str, leaf: Any, trained: Callable[[str], bool]) -> bool:
    names = names_of(path, leaf)
    found = {trained(name) for name in names}
    if len(found) > 1:
        kept = [name for name in names if trained(name)]
        raise ValueError(
            f"params: got {', '.join(kept[:3])} to train and other layers of the same stack not, allowed with"
            " model.stacked=True are all layers or none: set model.stacked=False, or name them all"
        )
    return found.pop()


def names_of(path: str, leaf: Any) -> list[str]:
    """The names of an array at `path`: one, or in a stack of layers one for each of them."""
    before, _, name = path.rpartition("/")
    if before.split("/")[-1] != LAYERS:
        return [path]
    return [f"{before}/{layer}/{name}" for layer in range(leaf.shape[0])]


def names(params: Params) -> list[str]:
    """The names of all arrays of `params`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = (("/".join(str(part.key) for part in path), leaf) for path, leaf in leaves)
    return [name for path, leaf in paths for name in names_of(path, leaf)]


def matching(patterns: Sequence[str], known: Collection[str], *, what: str) -> set[str]:
    """Those of the names `known` that any of the `patterns` matches.

    Raises ValueError, naming `what` and the nearest name, for a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(known, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
            raise ValueError(
                f"{what}: got the pattern {pattern!r}, which matches no parameter, allowed are patterns of names such"
                f" as layers/*/query; the nearest name is {near[0] if near else 'none'}: correct the pattern"
            )
        found.update(hits)
    return found


def like(tree: Any, part: Params) -> Any:
    """What `tree`, nested dicts of anything, has at the places of the arrays of `part`."""
    if not isinstance(part, Mapping):
        return tree
    return {name: like(tree[name], inner) for name, inner in part.items()}
