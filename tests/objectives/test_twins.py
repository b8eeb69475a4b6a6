"""Every term against a plain float64 twin, and its gradient against finite differences of that twin.

A twin is a function ``(x, fixed, data)`` of the log-probabilities: what the term detaches it computes from `fixed`, a
copy of x that the differences leave alone. So the gradients say which quantity is detached.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o

ROWS, WIDTH, STEP = 6, 5, 1e-6
Twin = Callable[[np.ndarray, np.ndarray, SimpleNamespace], np.ndarray]


def drawn() -> SimpleNamespace:
    rng = np.random.default_rng(9)
    lengths = np.asarray([5, 3, 0, 4, 2, 1])
    mask = np.arange(WIDTH)[None] < lengths[:, None]
    mask[0, 2] = False
    x = -rng.uniform(0.1, 2.0, (ROWS, WIDTH))
    old = x - rng.choice([-0.7, -0.2, 0.15, 0.9], (ROWS, WIDTH)) - rng.normal(0, 0.05, (ROWS, WIDTH))
    advantage = np.asarray([1.5, -1.0, 2.0, 0.5, -2.0, 0.0])[:, None] * np.ones((ROWS, WIDTH))
    data = {
        "x": x,
        "o": old,
        "b": old + rng.normal(0, 0.4, (ROWS, WIDTH)),
        "ref": x + rng.normal(0, 0.5, (ROWS, WIDTH)),
    }
    return SimpleNamespace(**data, a=advantage, m=mask.astype(float), n=np.maximum(mask.sum(1, keepdims=True), 1.0))


def row_sum(z: np.ndarray, d: SimpleNamespace) -> np.ndarray:
    return np.sum(d.m * z, axis=1, keepdims=True) * np.ones((1, WIDTH))


def clip_s(r: np.ndarray, a: np.ndarray, low: float = 0.2, high: float = 0.28) -> np.ndarray:
    return -np.minimum(r * a, np.clip(r, 1 - low, 1 + high) * a)


def dual(x, fixed, d, c=1.5):
    plain = clip_s(np.exp(x - d.o), d.a)
    return np.where(d.a < 0, np.minimum(plain, -c * d.a), plain)


def two_sided(x, fixed, d, c=1.1):
    r = np.exp(x - d.o)
    return -np.minimum(np.minimum(r, c) * d.a, np.clip(r, 0.8, 1.28) * d.a)


def gspo(x, fixed, d):
    return clip_s(np.exp(row_sum(x - d.o, d) / d.n), d.a, 0.1, 0.1)


def gspo_token(x, fixed, d):
    s = np.exp(row_sum(fixed - d.o, d) / d.n)
    return clip_s(s * np.exp(x - fixed), d.a, 0.1, 0.1)


def rloo_ppo(x, fixed, d):
    return clip_s(np.exp(row_sum(x - d.o, d)), d.a)


def cispo(x, fixed, d):
    return -np.clip(np.exp(fixed - d.o), 0.7, 1.3) * d.a * x


def gmpo(x, fixed, d):
    delta, sign = x - d.o, np.sign(d.a)
    z = sign * np.minimum(sign * delta, sign * np.clip(delta, -0.4, 0.4))
    return -d.a * np.exp(row_sum(z, d) / d.n)


def sapo(x, fixed, d):
    tau = np.where(d.a > 0, 1.0, 1.05)
    return -d.a * 4 / tau / (1 + np.exp(-tau * (np.exp(x - d.o) - 1)))


def vespo(x, fixed, d):
    s = np.clip(row_sum(np.clip(fixed - d.o, -20, 20), d), np.log(1e-8), 20)
    k, rate = np.where(d.a >= 0, 2.0, 3.0), np.where(d.a >= 0, 3.0, 2.0)
    return -np.exp(rate + k * s - rate * np.exp(s)) * d.a * x


def luffy(x, fixed, d):
    return -d.a * np.exp(x) / (np.exp(x) + 0.1)


def dppo(x, fixed, d):
    moved = np.exp(fixed) - np.exp(d.b)
    drop = np.where(d.a > 0, moved > 0.1, moved < -0.05)
    return np.where(drop, 0, -d.a * np.exp(x - d.b)) + 0.1 * (x - d.b) ** 2


def tis(x, fixed, d):
    return clip_s(np.exp(x - d.o), d.a) * np.minimum(np.exp(d.o - d.b), 1.1)


def tis_sequence(x, fixed, d):
    return clip_s(np.exp(x - d.o), d.a) * np.minimum(np.exp(row_sum(d.o - d.b, d)), 1.1)


def icepop(x, fixed, d):
    w = np.exp(d.o - d.b)
    return clip_s(np.exp(x - d.o), d.a) * np.where((w >= 0.8) & (w <= 1.2), w, 0)


def geometric(x, fixed, d):
    w = np.exp(row_sum(d.o - d.b, d) / d.n)
    return clip_s(np.exp(x - d.o), d.a) * np.exp(d.o - d.b) * ((w >= 0.9) & (w <= 1.1))


def opsm(x, fixed, d):
    drop = (d.a < 0) & (row_sum(d.b - fixed, d) / d.n > 0.05)
    return clip_s(np.exp(x - d.o), d.a) * ~drop


def bypass(x, fixed, d):
    return -d.a * x * np.minimum(np.exp(fixed - d.b), 1.2)


def adaptive(x, fixed, d):
    r = np.exp(x - d.o)
    return -r * d.a + 0.3 * (r - np.log(r) - 1)


def k3(delta: np.ndarray) -> np.ndarray:
    return np.exp(delta) - delta - 1


def straight_through(x, fixed, d):
    return k3(d.ref - fixed) + (d.ref - x) ** 2 / 2 - (d.ref - fixed) ** 2 / 2


def unbiased(x, fixed, d):
    return np.exp(x - d.o) * k3(d.ref - x)


def over_itself(x, fixed, d):
    return np.exp(x - fixed) * k3(d.ref - x)


CLIP = partial(o.ppo_clip, low=0.2, high=0.28)
ROW = partial(o.sequence_log_ratio, of=o.log_mismatch, reduction="mean")
CASES: dict[str, tuple[o.Term, Twin]] = {
    "ppo": (CLIP, lambda x, fixed, d: clip_s(np.exp(x - d.o), d.a)),
    "dual clip": (partial(CLIP, dual=1.5), dual),
    "two-sided": (partial(CLIP, dual=1.1, dual_form="cap_ratio"), two_sided),
    "gspo": (partial(o.ppo_clip, low=0.1, high=0.1, ratio=o.sequence_log_ratio), gspo),
    "gspo_token": (
        partial(o.ppo_clip, low=0.1, high=0.1, ratio=partial(o.sequence_log_ratio, gradient="token")),
        gspo_token,
    ),
    "rloo_ppo": (partial(CLIP, ratio=partial(o.sequence_log_ratio, reduction="sum")), rloo_ppo),
    "cispo": (partial(o.clipped_weight, low=0.3, high=0.3), cispo),
    "cispo, absolute": (partial(o.clipped_weight, low=0.7, high=1.3, bounds="absolute"), cispo),
    "gmpo": (o.geometric_clip, gmpo),
    "sapo": (o.soft_gate, sapo),
    "vespo": (o.soft_weight, vespo),
    "luffy": (o.shaped_probability, luffy),
    "dppo": (
        o.add(partial(o.probability_clip, tv_low=0.05, tv_high=0.1), o.scale(o.squared_log_ratio, by=0.1)),
        dppo,
    ),
    "tis": (o.reweight(CLIP, partial(o.truncated, upper=1.1)), tis),
    "tis_sequence": (o.reweight(CLIP, partial(o.truncated, of=o.mismatch_sum, upper=1.1)), tis_sequence),
    "icepop": (o.reweight(CLIP, partial(o.masked_importance, lower=0.8, upper=1.2)), icepop),
    "geometric": (
        o.reweight(o.reweight(CLIP, o.importance), partial(o.kept_rows, of=ROW, lower=0.9, upper=1.1)),
        geometric,
    ),
    "opsm": (o.reweight(CLIP, partial(o.off_policy_mask, threshold=0.05)), opsm),
    "bypass": (
        o.reweight(o.reinforce, partial(o.truncated, of=o.log_ratio_behavior, upper=1.2)),
        bypass,
    ),
    "adaptive": (o.add(o.unclipped, o.scale(partial(o.old_penalty, estimator=o.k3), by=0.3)), adaptive),
    "straight-through": (partial(o.kl_penalty, estimator=o.straight_through), straight_through),
    "unbiased": (partial(o.kl_penalty, weight=o.over_old), unbiased),
    "over itself": (partial(o.kl_penalty, weight=o.over_itself), over_itself),
}


@pytest.fixture(scope="module")
def found(laboratory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> values of the scored tokens, gradient of their sum."""
    draw, records, batch_of = laboratory
    data = drawn()
    with jax.enable_x64(True):
        arrays = draw(lengths=(WIDTH,) * ROWS, prompt=(0,) * ROWS, width=WIDTH)
        named = {"logp": data.x, "logp_old": data.o, "behavior": data.b, "logp_ref": data.ref, "mask": data.m > 0}
        arrays |= named | {"reward": np.zeros(ROWS)}
        stats, collected = records(arrays, prompts=1)
        stats = dataclasses.replace(stats, entropy=None)
        batch = batch_of(collected, o.RECIPES["ppo_clip"])
        batch = dataclasses.replace(batch, advantage=jnp.asarray(data.a))

        @jax.jit
        def compiled(logp):
            result = {}
            for name, (term, _) in CASES.items():

                def summed(logp, term=term):
                    value = term(*o.clean(dataclasses.replace(stats, logp=logp), batch))
                    return jnp.sum(jnp.where(batch.mask, value, 0.0)), value

                (_, value), gradient = jax.value_and_grad(summed, has_aux=True)(logp)
                result[name] = value, gradient
            return result

        return jax.tree.map(np.asarray, compiled(jnp.asarray(data.x)))


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_twin(found, name: str):
    data, twin = drawn(), CASES[name][1]
    value, gradient = found[name]
    assert value.dtype == np.float64
    expected = twin(data.x, data.x, data) * data.m
    np.testing.assert_allclose(value * data.m, expected, rtol=1e-9, atol=1e-12)
    slope = np.zeros_like(data.x)
    for place in np.ndindex(*data.x.shape):
        moved = np.zeros_like(data.x)
        moved[place] = STEP
        above, below = (np.sum(data.m * twin(data.x + sign * moved, data.x, data)) for sign in (1, -1))
        slope[place] = (above - below) / (2 * STEP)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)
    assert np.any(np.abs(gradient) > 1e-3)


def test_every_branch_is_taken():
    """The random batch is no good if nothing in it is clipped, capped, masked or dropped."""
    d = drawn()
    scored = d.m > 0
    for condition in (
        (np.exp(d.x - d.o) > 1.5) & (d.a < 0),
        (np.exp(d.x - d.o) < 0.8) & (d.a < 0),
        (np.exp(d.x - d.o) > 1.28) & (d.a > 0),
        np.exp(d.o - d.b) > 1.1,
        (np.exp(d.o - d.b) < 0.8) | (np.exp(d.o - d.b) > 1.2),
        (np.exp(d.x) - np.exp(d.b) > 0.1) & (d.a > 0),
        (np.exp(d.x) - np.exp(d.b) < -0.05) & (d.a < 0),
    ):
        assert np.any(condition & scored) and not np.all(condition[scored])
    weight, gap = (np.exp(row_sum(d.o - d.b, d) / d.n)[:, 0], (row_sum(d.b - d.x, d) / d.n)[:, 0])
    assert (
        {bool(0.9 <= w <= 1.1) for w in weight[[0, 1, 3, 4]]} == {bool(k > 0.05) for k in gap[[1, 4]]} == {True, False}
    )
