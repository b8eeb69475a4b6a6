"""The type of the optimiser's settings names the method, which gets everything it was handed."""

import dataclasses
from typing import Any, cast

import jax
import numpy as np
import pytest

from grpo_jax import updates
from grpo_jax.objectives import grpo
from grpo_jax.updates import Gradient, Method, methods
from tests.laws import tiny


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a method that changes nothing."""


FREE: Any = Nothing()
SETTINGS = dataclasses.replace(tiny.settings(grpo(beta=0)), optimizer=FREE)


def test_a_method_of_its_own_is_found_by_its_settings(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def keep(params, settings: Gradient) -> str:
        return f"{settings.updates} updates of {len(params)} names"

    def update(*args: Any, **given: Any) -> Any:
        seen.update(given, args=args)
        return "after", {}

    monkeypatch.setitem(methods.METHODS, Nothing, Method(keep, update))
    assert updates.begin({"a": 1, "b": 2}, SETTINGS) == "1 updates of 2 names"
    state, batch = (cast(Any, name) for name in ("state", "batch"))
    given: dict[str, Any] = {name: name for name in ("key", "mesh", "reference", "frozen")}
    assert updates.update(state, batch, SETTINGS, **given) == ("after", {})
    assert seen == {"args": (state, batch, SETTINGS), **given}


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="optimizer: got Nothing, allowed Optimizer, SGD, TrustRegion"):
        updates.begin({}, SETTINGS)


@pytest.mark.parametrize("optimizer", [updates.Optimizer(), updates.SGD(momentum=0.5)], ids=lambda o: type(o).__name__)
def test_gradient_methods_keep_what_their_optimiser_keeps(optimizer: updates.AnyOptimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    params = {"w": np.ones((2, 3), np.float32)}
    kept = [x.shape for x in jax.tree.leaves(updates.begin(params, settings))]
    moments = 2 if isinstance(optimizer, updates.Optimizer) else 1
    assert kept.count((2, 3)) == moments
