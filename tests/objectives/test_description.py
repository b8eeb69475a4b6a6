"""Descriptions are canonical, complete, and refuse what cannot be described."""

import dataclasses
import functools
import subprocess
import sys
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from grpo_jax import objectives as o
from grpo_jax.objectives import describe, functions, needs, source_digest, wants

HERE = describe(np.float64(1)) and __name__


def shaped(x, *, low=0.2, high=0.3, inner=None):
    return x, low, high, inner


def calls_another(x):
    return shaped(x)


@needs("entropy", "value")
def reads(stats, batch, *, inner=None):
    return stats, batch, inner


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    term: object = shaped
    note: str = dataclasses.field(default="", metadata={"describe": False})


@dataclasses.dataclass
class Loose:
    rate: float = 0.1


@struct.dataclass
class Sampling:
    temperature: float = 1.0
    stop: tuple = (3,)


class Holder:
    def method(self, x):
        return x


MISSPELT = {"lwo": 0.1}
SHAPED = f"{HERE}.shaped(high=0.3, inner=None, low=0.2)"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "None"),
        (True, "True"),
        (3, "3"),
        (0.1, "0.1"),
        (1e-6, "1e-06"),
        ("a'b", '"a\'b"'),
        ((1, "x"), "(1, 'x')"),
        ((1,), "(1,)"),
        ((), "()"),
        ({"b": 1, "a": (2.0,)}, "{'a': (2.0,), 'b': 1}"),
        (np.float64(0.5), "0.5"),
        (np.int32(4), "4"),
        (jnp.float32, "float32"),
        (jnp.dtype("bfloat16"), "bfloat16"),
        (np.int32, "int32"),
        (float, "builtins.float"),
        (Settings, f"{HERE}.Settings"),
        (shaped, SHAPED),
        (calls_another, f"{HERE}.calls_another"),
        (Settings(0.5, note="not told"), f"{HERE}.Settings(rate=0.5, term={SHAPED})"),
        (Sampling(), f"{HERE}.Sampling(temperature=1.0, stop=(3,))"),
        (
            o.Part(o.token_mean, o.reinforce),
            "grpo_jax.objectives.algebra.Part(aggregation=grpo_jax.objectives.aggregation.token_mean, "
            "term=grpo_jax.objectives.surrogates.reinforce)",
        ),
        (partial(shaped, inner=partial(shaped, low=1)), f"{HERE}.shaped(high=0.3, inner={SHAPED[:-4]}1), low=0.2)"),
    ],
)
def test_descriptions(x, text: str):
    assert describe(x) == text


def test_the_order_of_binding_and_bound_defaults_change_nothing():
    texts = {
        describe(shaped),
        describe(partial(shaped)),
        describe(partial(shaped, low=0.2)),
        describe(partial(shaped, high=0.3, low=0.2)),
        describe(partial(partial(shaped, low=9.0), low=0.2)),
    }
    assert texts == {SHAPED}
    assert describe(partial(shaped, low=0.25)) != SHAPED


def closure(value):
    def inner(x):
        return x * value

    return inner


@pytest.mark.parametrize(
    ("x", "what", "remedy"),
    [
        (lambda x: x, "a lambda", "functools.partial"),
        (closure(3), "the inner function closure.<locals>.inner", "top of its module"),
        (Holder().method, "the bound method Holder.method", "functools.partial"),
        (jnp.ones(2), "an array", "Batch.coef"),
        (np.ones(2), "an array", "Batch.coef"),
        ([1], "a list", "tuple"),
        ({1, 2}, "a set", "tuple"),
        ({1: 2}, "the key 1", "names"),
        (Loose(), "a mutable Loose", "frozen=True"),
        (partial(shaped, 1.0), "positional arguments", "bind by name"),
        (partial(shaped, **MISSPELT), "the unknown keyword 'lwo'", "low"),
        (object(), "of type object", "allowed are functions"),
        (Holder(), "of type Holder", "allowed are functions"),
    ],
)
def test_what_has_no_description_is_refused_with_the_remedy(x, what: str, remedy: str):
    with pytest.raises(ValueError, match=r"Remedy: ") as error:
        describe(x)
    assert what in str(error.value) and remedy in str(error.value)


def test_a_refusal_says_where():
    with pytest.raises(ValueError, match=r"x\.term\.inner\[1\] is a lambda"):
        describe(Settings(0.1, term=partial(shaped, inner=(1, lambda x: x))))


def test_wants_is_the_union_over_everything_inside():
    assert wants(reads) == ("entropy", "value")
    nested = Settings(0.1, term=(shaped, {"a": partial(reads, inner=partial(o.kl_penalty, estimator=o.k1))}))
    assert wants(nested) == ("entropy", "logp_ref", "value")
    assert wants(o.add(o.reinforce, o.scale(o.negative_entropy, by=0.1))) == ("entropy",)
    assert wants(shaped) == ()


def test_a_need_that_no_record_has_is_refused():
    with pytest.raises(ValueError, match="allowed are entropy, hidden"):
        needs("entropie")


def test_functions_come_with_their_keywords():
    found = {f.__name__: keywords for f, keywords in functions((partial(shaped, low=1.0), {"k": calls_another}))}
    assert found == {"shaped": {"low": 1.0, "high": 0.3, "inner": None}, "calls_another": {}}


PROGRAM = """
from functools import partial
from grpo_jax.objectives import describe, source_digest
SCALE = 2.0
def scaled(x):
    return x * SCALE {edit}
def term(stats, batch, *, by=1.0):
    return scaled(stats.logp) * by
def unused(x):
    return x {other}
if __name__ == "__main__":
    print(describe(partial(term, by=0.5)), source_digest(partial(term, by={by})))
"""


def run(path, *, edit="", other="", by="0.5", module=False) -> list[str]:
    path.write_text(PROGRAM.format(edit=edit, other=other, by=by))
    command = [sys.executable, "-m", path.stem] if module else [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=path.parent)
    return done.stdout.split()


def test_a_script_is_described_by_its_file_and_digested_by_the_sources_it_reaches(tmp_path, root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    path = tmp_path / "mine.py"
    text, digest = run(path)
    assert text == "mine.term(by=0.5)"
    assert len(digest) == 64
    # another way to start it, and an edit of what the term does not reach, change nothing
    assert run(path, module=True) == [text, digest]
    assert run(path, other="+ 1") == [text, digest]
    # an edit of a function that the term calls does
    assert run(path, edit="+ 1")[1] != digest


def test_the_digest_is_of_user_functions_only():
    library = source_digest(o.RECIPES["grpo"])
    assert library == source_digest(o.RECIPES["dapo"]) == source_digest(())
    assert source_digest(shaped) not in (library, source_digest(calls_another))
    assert source_digest((shaped, calls_another)) == source_digest(calls_another)  # it calls the other one


def test_wrapped_functions_are_described_by_what_they_wrap():
    @functools.wraps(shaped)
    def wrapper(*args, **keywords):
        return shaped(*args, **keywords)

    assert describe(wrapper) == SHAPED
    assert source_digest(wrapper) == source_digest(shaped)
