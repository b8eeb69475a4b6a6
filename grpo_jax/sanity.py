"""What has to hold of the settings of an experiment beyond the ranges of its groups: types, and how they fit together.

Each group checks its own ranges when it is made. What is asked here is asked once more of all of them (is a count a
whole number, is a number finite) and of several together (groups of one, splits over a mesh, tokens that exist).
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.advantages import fields_read, learns_alone
from grpo_jax.data.difficulty import Classed, initial, probabilities
from grpo_jax.groups import by_label, by_prompt
from grpo_jax.models import abstract, trained
from grpo_jax.objectives import functions, wants
from grpo_jax.sharding import BATCH_AXES
from grpo_jax.updates import TrustRegion, moves

UNBOUNDED = frozenset({"train.gap_limit"})
"""Numbers that may be infinite, which switches off what they limit."""


def check(experiment: Any) -> None:
    """Raise a ValueError about the `Experiment`: the setting, what was given, what is allowed and what to do."""
    for path, kind, value in _numbers("", experiment):
        _check_number(path, kind, value)
    _check_text_rewards(experiment)
    _check_reward_names(experiment)
    _check_completions(experiment)
    _check_positions(experiment)
    _check_scoring(experiment)
    _check_chunk(experiment)
    _check_stop(experiment)
    _check_group_size(experiment)
    _check_labels(experiment)
    _check_critic(experiment)
    _check_mesh(experiment)
    _check_dynamic(experiment)
    _check_difficulty(experiment)
    trained(experiment.model, experiment.train.frozen)
    _check_reference(experiment)
    _check_master(experiment)


def _numbers(prefix: str, group: Any) -> Iterator[tuple[str, type, Any]]:
    """Path, wanted type (int or float) and value of every number in the nested settings `group`."""
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        value, path = getattr(group, field.name), f"{prefix}{field.name}"
        kinds = _kinds(hints[field.name])
        if value is None and type(None) in kinds:
            continue
        wanted = next((kind for kind in (float, int) if kind in kinds), None)
        if wanted is not None and str not in kinds and bool not in kinds and not hasattr(value, "aval"):
            yield path, wanted, value
        elif dataclasses.is_dataclass(value) and type(value).__module__.startswith("grpo_jax."):
            yield from _numbers(f"{path}.", value)


def _kinds(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _check_number(path: str, kind: type, value: Any) -> None:
    fits = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, fits):
        allowed, remedy = ("a whole number", "without a fraction") if kind is int else ("a number", "as a number")
        raise ValueError(f"{path}: got {value!r:.80}, allowed is {allowed}: write it {remedy} and without quotes")
    if math.isnan(value) or (math.isinf(value) and path not in UNBOUNDED):
        raise ValueError(f"{path}: got {value}, allowed are finite numbers: give one")


def _check_text_rewards(experiment: Any) -> None:
    rewards = experiment.text_rewards
    if not isinstance(rewards, Mapping):
        raise ValueError(
            f"text_rewards: got a {type(rewards).__name__}, allowed is a mapping from names to (function, weight):"
            ' write {"accuracy": (rewards.text.accuracy, 1.0)}'
        )
    for name, pair in rewards.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0])):
            raise ValueError(
                f"text_rewards[{name!r}]: got {pair!r:.80}, allowed is a pair of a function and its weight: write"
                f" {{{name!r}: (my_reward, 1.0)}}"
            )
        if not hasattr(pair[1], "__array__"):  # of an array `describe` says what to do
            _check_number(f"text_rewards[{name!r}][1], its weight", float, pair[1])


def _check_reward_names(experiment: Any) -> None:
    """Every evaluation scores decoded text, and the gate of a warm start reads "accuracy"."""
    names = sorted(experiment.text_rewards)
    if not names:
        raise ValueError(
            "text_rewards: got none, allowed at least one: every evaluation scores decoded text, so give"
            ' {"accuracy": (rewards.text.accuracy, 1.0)} or your own'
        )
    if experiment.warm_start is not None and "accuracy" not in names:
        raise ValueError(
            f"text_rewards: got {', '.join(names)}, allowed with a warm start are rewards of which one is called"
            " 'accuracy', because its gate reads that: name one of them so, or set warm_start to None"
        )


def _check_completions(experiment: Any) -> None:
    """Tokens that are sampled have a place in the arrays of the data."""
    got, allowed = experiment.sampling.max_tokens, experiment.data.completion_width
    if got > allowed:
        raise ValueError(
            f"sampling.max_tokens: got {got}, allowed up to {allowed}, the completion width of the data: lower it or"
            " widen the data"
        )


def _check_positions(experiment: Any) -> None:
    """A table of positions has a row for every token."""
    data, got = experiment.data, experiment.model.positions
    completion = data.completion_width if experiment.warm_start else experiment.sampling.max_tokens
    needed = data.prompt_width + completion
    if got and got < needed:
        raise ValueError(
            f"model.positions: got {got}, allowed >= {needed} for prompts of {data.prompt_width} and completions of"
            f" {completion} tokens: set model.positions={needed} or lower the widths"
        )


def _check_scoring(experiment: Any) -> None:
    scoring = experiment.scoring
    checks = (
        ("workers", scoring.workers is None or scoring.workers >= 1, "None or >= 1"),
        ("timeout_s", scoring.timeout_s > 0, "> 0 seconds: a reward that hangs has to end"),
        ("memory_mb", scoring.memory_mb >= 1, ">= 1"),
        ("failure_share", 0 <= scoring.failure_share <= 1, "0 to 1, a share of rows"),
    )
    for name, fits, allowed in checks:
        if not fits:
            got = getattr(scoring, name)
            raise ValueError(f"scoring.{name}: got {got}, allowed {allowed}: change it to a number in that range")


def _check_chunk(experiment: Any) -> None:
    chunk = experiment.train.chunk
    if chunk is not None and chunk < 1:
        raise ValueError(f"train.chunk: got {chunk}, allowed None or >= 1 tokens: None lets the vocabulary decide")


def _check_stop(experiment: Any) -> None:
    vocab = experiment.data.tokenizer.vocab_size
    unknown = [token for token in experiment.sampling.stop if token >= vocab]
    if unknown:
        raise ValueError(
            f"sampling.stop: got {unknown[0]}, allowed are ids of tokens, 0 to {vocab - 1}: write"
            " stop=(data.tokenizer.eos,)"
        )


def _check_group_size(experiment: Any) -> None:
    """A comparison within a group of one teaches nothing: its advantages are 0, or no numbers."""
    train, recipe = experiment.train, experiment.recipe
    if train.group_size != 1 or train.steps == 0:
        return
    if by_prompt not in [function for function, _ in functions(recipe.grouping)]:
        return
    if learns_alone(recipe.advantage):
        return
    name = next(function.__name__ for function, _ in functions(recipe.advantage))
    raise ValueError(
        f"train.group_size: got 1, allowed >= 2 with the advantage {name}: it compares the completions of a prompt with"
        " each other, and one alone is always worth 0; raise train.group_size, or take advantages.batch_centered, which"
        " compares all rows of a step"
    )


def _check_labels(experiment: Any) -> None:
    """A grouping by a label that the prompts lack is found now, and not after the warm start."""
    wanted = [keywords["name"] for f, keywords in functions(experiment.recipe.grouping) if f is by_label]
    if not wanted:
        return
    known = experiment.data.draw(experiment.seed, np.arange(1)).label
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"recipe.grouping: by_label.name: got {name!r}, allowed {', '.join(sorted(known)) or 'none'}, the"
                f" labels of the prompts: let the data make it, as data.labels={name} does of a key of the lines of a"
                " file, or group by another one"
            )


def _check_dynamic(experiment: Any) -> None:
    """A group of one never has two rewards, and a component that has to differ has to exist."""
    train = experiment.train
    if train.dynamic is None:
        return
    if train.group_size == 1:
        raise ValueError(
            "train.group_size: got 1, allowed >= 2 with train.dynamic: it keeps the prompts whose completions earn"
            " different rewards; raise train.group_size, or set train.dynamic=None"
        )
    _check_component("train.dynamic.component", train.dynamic.component, experiment)


def _check_difficulty(experiment: Any) -> None:
    """Rates are remembered of lines of a file or of parts of a mixture, and of a component of the reward."""
    difficulty = experiment.train.difficulty
    if difficulty is None:
        return
    if not isinstance(experiment.data, Classed):
        raise ValueError(
            f"train.difficulty: got {type(difficulty).__name__} with data of type {type(experiment.data).__name__},"
            " allowed are Jsonl, whose lines have a success rate each, and Mixture, whose parts have: put tasks of"
            " different difficulty into a Mixture, or set train.difficulty=None"
        )
    _check_component("train.difficulty.component", difficulty.component, experiment)
    probabilities(difficulty, initial(difficulty, experiment.data.class_shares()), experiment.data.class_shares())


def _check_component(path: str, name: str | None, experiment: Any) -> None:
    known = list(experiment.text_rewards)
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(
            f"{path}: got {name!r}, allowed {', '.join(known)}, the names of the rewards: write for instance"
            f" {near[0] if near else known[0]}"
        )


def _check_critic(experiment: Any) -> None:
    """Who reads values needs a critic and somebody who teaches it; what is set for one must not be lost."""
    recipe, model = experiment.recipe, experiment.model
    taught, read = "value" in wants(recipe.parts), "value_old" in fields_read(recipe.advantage)
    if (taught or read) and model.critic is None:
        raise ValueError(
            "model.critic: got None, allowed head, tower with this recipe, whose loss or advantage reads the values of"
            " a critic: --set model.critic=head puts one on the policy's layers, or take a recipe without a critic"
        )
    if read and not taught:
        raise ValueError(
            "recipe.parts: got none that teaches the critic, whose values the advantage reads, so it would stay at 0;"
            " allowed is a recipe with one: add Part(token_mean, value_clip), as objectives.ppo_critic does"
        )
    if taught and isinstance(experiment.optimizer, TrustRegion):
        raise ValueError(
            "optimizer: got TrustRegion, allowed Optimizer, SGD with a recipe that teaches a critic: a trust region"
            " bounds what the policy says and nothing bounds a value; take another optimizer, or a recipe without one"
        )
    optimizers = {"optimizer": (experiment.optimizer, taught)}
    if experiment.warm_start is not None:
        optimizers["warm_start.optimizer"] = (experiment.warm_start.optimizer, False)
    for path, (settings, learns) in optimizers.items():
        for name, neutral in (("critic_rate", 1.0), ("critic_warmup", 0)):
            got = getattr(settings, name, neutral)
            if got != neutral and not learns:
                raise ValueError(
                    f"{path}.{name}: got {got}, allowed {neutral}, because no critic learns there: leave it out, or"
                    " train with objectives.ppo_critic"
                )


def _check_reference(experiment: Any) -> None:
    """A reference that moves needs a recipe that looks at it."""
    rule = experiment.train.reference
    if moves(rule) and {"logp_ref", "kl_full"}.isdisjoint(wants(experiment.recipe)):
        raise ValueError(
            f"train.reference: got {rule}, allowed is Fixed() with a recipe that compares the policy with no reference:"
            " take a recipe with a penalty, such as grpo(beta=0.04), or leave it out"
        )


def _check_master(experiment: Any) -> None:
    """Master weights are for parameters of fewer digits."""
    model, warm = experiment.model, experiment.warm_start
    given = [("optimizer", experiment.optimizer, model)]
    given += [] if warm is None else [("warm_start.optimizer", warm.optimizer, model.without_lora)]
    for path, optimizer, learner in given:
        if not getattr(optimizer, "master", False):
            continue
        dtype = jnp.dtype(learner.lora.dtype) if learner.lora else _widest(abstract(learner))
        if dtype.itemsize >= 4:
            raise ValueError(
                f"{path}.master: got True with parameters trained in {dtype}, allowed False: they are their own master;"
                " leave it out, or set model.param_dtype=bfloat16 (model.lora.dtype with adapters)"
            )


def _widest(tree: Any) -> jnp.dtype:
    return max((leaf.dtype for leaf in jax.tree.leaves(tree)), key=lambda dtype: dtype.itemsize)


def _check_mesh(experiment: Any) -> None:
    """Prompts and demonstrations are spread over the shards of the batch, each of which gets as many."""
    mesh = experiment.mesh
    if mesh is None:
        return
    for axis, size in mesh.items():
        _check_number(f"mesh[{axis!r}]", int, size)
    shards = math.prod(mesh.get(axis, 1) for axis in BATCH_AXES)
    warm = experiment.warm_start
    counts = {"train.prompts": experiment.train.prompts} | ({} if warm is None else {"warm_start.rows": warm.rows})
    for name, count in counts.items():
        if shards > 0 and count % shards:
            near = " and ".join(str(n) for n in (count // shards * shards, -(-count // shards) * shards) if n)
            raise ValueError(
                f"{name}: got {count}, which {shards} shards of the mesh {dict(mesh)} do not divide; the nearest valid"
                f" numbers are {near}: change {name} or the mesh"
            )
