"""An experiment is a frozen value: every setting of a run, nested in groups, nothing read from anywhere else."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from grpo_jax import objectives, sanity
from grpo_jax.data import Difficulty, Task
from grpo_jax.dynamic import Dynamic
from grpo_jax.models import AnyModel
from grpo_jax.objectives import Recipe
from grpo_jax.rewards.text import TextRewards
from grpo_jax.sampling import Sampling
from grpo_jax.sharding import BATCH_AXES
from grpo_jax.train import IMITATION, Step, TokenReward
from grpo_jax.updates import AnyOptimizer, AnyReference, Fixed, Gradient, Optimizer
from grpo_jax.weights import Weights


@dataclass(frozen=True)
class Train:
    """Size of a GRPO step and their number."""

    steps: int = 100
    prompts: int = 32
    group_size: int = 8
    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1
    chunk: int | None = None  # completion tokens whose logits exist at a time; None: chosen from the vocabulary
    gap_limit: float = 1e-3  # nats; a larger logp_gap/max stops the run: sampler and trainer disagree
    skip_limit: int = 5  # updates refused in a row before the run stops
    demonstrations: int = 0  # rows of every group that are not sampled but the task's demonstration: 0 or 1
    dynamic: Dynamic | None = None  # sample rounds of prompts until enough groups are informative
    difficulty: Difficulty | None = None  # draw prompts by how often they were solved
    reference: AnyReference = Fixed()  # or Replaced(every=...), Averaged(decay=...): how the policy of a penalty moves
    frozen: tuple[str, ...] = ()  # patterns of names of parameters that GRPO leaves as they are: layers/0/*, embed
    replay_experts: bool = True  # a mixture learns through the experts that sampled; False: through its own choice


@dataclass(frozen=True)
class WarmStart:
    """Supervised imitation of the task's demonstrations before GRPO, for as long as it takes.

    From step `steps` on, every `check_every` steps, the sampled held-out accuracy is measured; the warm start ends when
    it reaches `gate`, and the run stops if it has not by step `limit`: GRPO from a policy that never solves a problem
    collapses to short answers. The learning rate is scheduled over `limit` steps.
    """

    steps: int = 1000
    limit: int = 3000
    gate: float = 0.3
    check_every: int = 100
    rows: int = 32
    optimizer: AnyOptimizer = Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1)
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "check_every", "rows", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"warm_start.{name}: got {getattr(self, name)}, allowed >= 1: set a positive number")
        if not 0 <= self.gate <= 1:
            raise ValueError(
                f"warm_start.gate: got {self.gate}, allowed 0 to 1, a share of problems: 0 switches it off"
            )
        if self.limit < self.steps:
            raise ValueError(
                f"warm_start.limit: got {self.limit}, allowed >= steps, {self.steps}: raise it or lower steps"
            )


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation: small ones during the run, a full one before GRPO and at its end.

    Every set is measured, and every category of it. Accuracy is the share of correct samples, averaged over problems:
    what is called avg@k, whatever k is, and pass@1.
    """

    every: int = 10
    prompts: int = 256
    full_prompts: int | None = 2048
    """Problems of a full evaluation; None: all that the data holds out. A further set may have fewer."""
    samples: int = 4
    """Completions of each problem in a full evaluation."""
    small_samples: int = 1
    """Completions of each problem in a small one."""
    ks: tuple[int, ...] | None = None
    """Which pass@k and maj@k are reported, where there are k samples; None: those of all samples."""
    category: str | None = "category"
    """The key of the metadata whose values name the categories; a set without it has none."""
    show: int = 4
    """Problems of every set whose completions are written down at every evaluation."""


@dataclass(frozen=True)
class Saving:
    """Checkpoints: one every `every` GRPO steps and every `warm_every` warm start steps; the last `keep` stay.

    With `best`, the name of a metric of the small evaluations such as "accuracy/heldout", a state whose evaluation is
    among the best `keep_best` is saved too, and stays for as long as it is. Full evaluations count with their own
    value; of equal ones the earlier is better.
    """

    every: int = 10
    warm_every: int = 500
    keep: int = 2
    best: str | None = None
    best_mode: Literal["max", "min"] = "max"
    keep_best: int = 1


@dataclass(frozen=True)
class Scoring:
    """How text rewards run. Those of the library run in this process; with one of the user's, all run in workers.

    A pair of record and reward that takes longer than `timeout_s` seconds, or kills its worker, is lost alone: its row
    counts nowhere. More than `failure_share` of the last 1,024 rows lost so stop the run.

    Where text rewards are the reward, the prompts of a step are sampled in `chunks`, and each is scored while the next
    is sampled. Before the first step the answers that the data knows to be right have to score 1 on "accuracy", and
    junk 0; `canary` False leaves that out.
    """

    workers: int | None = None  # processes; None: one for each core, and at least 8, as many rewards wait
    timeout_s: float = 10.0
    memory_mb: int = 2048  # of a worker, beyond what it takes to load the rewards
    failure_share: float = 0.2
    chunks: int | None = None  # a divisor of train.prompts; None: up to 4 with workers, else 1
    canary: bool = True


@dataclass(frozen=True)
class Experiment:
    """All of a run. `reward` scores token ids inside the compiled step; `text_rewards` score decoded text.

    With a token reward the text rewards are its twins: they score the same rows at every evaluation and any
    disagreement stops the run. Without one they are the reward.

    `heldout` names further sets of problems to evaluate on: all that each task holds out, up to the sizes of
    `evaluation`. The set that `data` holds out is called "heldout". Further sets are scored by the text rewards alone.
    """

    name: str
    data: Task
    model: AnyModel
    sampling: Sampling
    recipe: Recipe
    text_rewards: TextRewards
    reward: TokenReward | None = None
    seed: int = 0
    train: Train = Train()
    optimizer: AnyOptimizer = Optimizer()
    warm_start: WarmStart | None = None
    evaluation: Evaluation = Evaluation()
    saving: Saving = Saving()
    scoring: Scoring = Scoring()
    mesh: Mapping[str, int] | None = None
    heldout: Mapping[str, Task] = field(default_factory=dict)
    weights: Weights | None = None
    """Where initial parameters come from; None: from the seed."""

    def __post_init__(self) -> None:
        sanity.check(self)
        vocabulary = self.data.tokenizer.vocab_size
        if self.model.vocab < vocabulary:  # published models have more rows than tokens: a round number of them
            raise ValueError(
                f"model.vocab: got {self.model.vocab}, allowed >= {vocabulary}, the tokenizer's: build the model with"
                " vocab=data.tokenizer.vocab_size"
            )
        _check_name(self.name)
        _check_ranges(self)
        _check_further(self)
        _check_chunks(self)
        step_settings(self).gradient.check(self.train.prompts)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name) or not name.strip("."):
        raise ValueError(
            f"name: got {name!r}, allowed are 1 to 80 letters, digits, '.', '_' and '-': it names the folder of the run"
        )


def most_draws(train: Train) -> int:
    """How many prompts GRPO draws at most."""
    return train.steps * train.prompts * (1 if train.dynamic is None else train.dynamic.rounds)


def _check_ranges(experiment: Experiment) -> None:
    train, evaluation, saving = experiment.train, experiment.evaluation, experiment.saving
    shown = train.demonstrations
    draws, least = most_draws(train), evaluation.prompts
    product = "train.steps * train.prompts" + (" * train.dynamic.rounds" if train.dynamic else "")
    full = least if evaluation.full_prompts is None else evaluation.full_prompts
    checks: tuple[tuple[str, object, bool, str], ...] = (
        ("seed", experiment.seed, 0 <= experiment.seed < 2**31, "0 to 2^31 - 1"),
        ("train.steps", train.steps, train.steps >= 0, ">= 0"),
        ("train.prompts", train.prompts, train.prompts >= 1, ">= 1"),
        (product, draws, draws < 2**31, "below 2^31"),
        ("train.demonstrations", shown, 0 <= shown < max(1, min(train.group_size, 2)), "0, or 1 of a larger group"),
        ("train.gap_limit", train.gap_limit, train.gap_limit > 0, "> 0"),
        ("train.skip_limit", train.skip_limit, train.skip_limit >= 1, ">= 1"),
        ("evaluation.every", evaluation.every, evaluation.every >= 1, ">= 1"),
        ("evaluation.prompts", evaluation.prompts, evaluation.prompts >= 1, ">= 1"),
        ("evaluation.full_prompts", full, full >= least, f">= evaluation.prompts, {least}"),
        ("evaluation.samples", evaluation.samples, evaluation.samples >= 1, ">= 1"),
        ("evaluation.small_samples", evaluation.small_samples, evaluation.small_samples >= 1, ">= 1"),
        ("evaluation.show", evaluation.show, evaluation.show >= 0, ">= 0"),
        ("saving.every", saving.every, saving.every >= 1, ">= 1"),
        ("saving.warm_every", saving.warm_every, saving.warm_every >= 1, ">= 1"),
        ("saving.keep", saving.keep, saving.keep >= 1, ">= 1"),
        ("saving.keep_best", saving.keep_best, saving.keep_best >= 1, ">= 1"),
        *_ks_checks(evaluation),
    )
    for name, got, fits, allowed in checks:
        if not fits:
            raise ValueError(f"{name}: got {got}, allowed {allowed}: change it to a number in that range")


def _ks_checks(evaluation: Evaluation) -> list[tuple[str, object, bool, str]]:
    most = evaluation.samples
    return [("evaluation.ks", k, 1 <= k <= most, f"1 to evaluation.samples, {most}") for k in evaluation.ks or ()]


def fitting_chunks(experiment: Experiment) -> list[int]:
    """The numbers of pieces, ascending, into which the prompts of a step can be cut; each has to fill a mesh."""
    prompts, mesh = experiment.train.prompts, experiment.mesh or {}
    shards = math.prod(mesh.get(axis, 1) for axis in BATCH_AXES)
    return [count for count in range(1, prompts + 1) if prompts % count == 0 and prompts // count % shards == 0] or [1]


def _check_chunks(experiment: Experiment) -> None:
    got, fitting = experiment.scoring.chunks, fitting_chunks(experiment)
    if got is not None and got not in fitting:
        near = sorted(fitting, key=lambda count: abs(count - got))[:2]
        raise ValueError(
            f"scoring.chunks: got {got}, which does not cut {experiment.train.prompts} prompts into equal pieces that"
            f" fit the mesh; the nearest valid numbers are {' and '.join(map(str, sorted(near)))}: change it or"
            " train.prompts"
        )


OWN_SET = "heldout"
"""What the problems are called that `Experiment.data` holds out."""
TAKEN = (OWN_SET, "train", "greedy", "mean", "std", "min", "max", "low", "high", "stopped")
"""Names that mean something else in metrics and samples, as in ``length/mean``."""


def _check_further(experiment: Experiment) -> None:
    """Raise a ValueError for a further set whose name or whose problems do not fit."""
    data, saving = experiment.data, experiment.saving
    if saving.best_mode not in ("max", "min"):
        raise ValueError(f"saving.best_mode: got {saving.best_mode!r}, allowed max, min: choose one of these")
    for name, task in experiment.heldout.items():
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name) or not name.strip("."):
            raise ValueError(
                f"heldout: got a set called {name!r}, allowed are 1 to 40 letters, digits, '.', '_' and '-': it is part"
                " of names of metrics"
            )
        if name in TAKEN:
            raise ValueError(
                f"heldout: got a set called {name!r}, allowed is any name but {', '.join(TAKEN)}: these have a meaning"
                " already; choose another"
            )
        if task.tokenizer != data.tokenizer:
            raise ValueError(
                f"heldout.{name}: got a task with the tokenizer {task.tokenizer!r:.120}, allowed is that of the data,"
                f" {data.tokenizer!r:.120}: the model reads no other"
            )
        needed = task.prompt_width + experiment.sampling.max_tokens
        if experiment.model.positions and experiment.model.positions < needed:
            raise ValueError(
                f"heldout.{name}: got prompts of {task.prompt_width} tokens, which with completions of"
                f" {experiment.sampling.max_tokens} need {needed} positions, allowed up to model.positions,"
                f" {experiment.model.positions}: set model.positions={needed} or lower the width of its prompts"
            )


@dataclass(frozen=True)
class Summary:
    """What a finished run came to; `summary.json` holds the same."""

    name: str
    steps: int
    accuracy_before: float
    accuracy_after: float
    greedy_before: float
    greedy_after: float
    format_before: float
    format_after: float
    length_before: float
    length_after: float
    entropy_before: float
    entropy_after: float
    warm_steps: int
    seconds: float
    cpu_seconds: float
    parameters: int
    trained: int
    state_digest: str
    estimates: Mapping[str, object] = field(default_factory=dict)
    traces: Mapping[str, int] = field(default_factory=dict)


def step_settings(experiment: Experiment) -> Step:
    """What the compiled GRPO step of `experiment` is bound to."""
    train = experiment.train
    gradient = Gradient(
        model=experiment.model,
        recipe=experiment.recipe,
        optimizer=experiment.optimizer,
        group_size=train.group_size,
        updates=train.steps * train.epochs * train.minibatches,
        temperature=float(experiment.sampling.temperature),
        epochs=train.epochs,
        minibatches=train.minibatches,
        microbatches=train.microbatches,
        chunk=train.chunk,
        reference=train.reference,
        replay_experts=train.replay_experts,
    )
    return Step(
        gradient=gradient,
        sampling=experiment.sampling,
        reward=experiment.reward,
        demonstrations=train.demonstrations,
    )


def warm_settings(experiment: Experiment, warm: WarmStart) -> Gradient:
    """What the compiled warm start step of `experiment` is bound to."""
    return Gradient(
        model=experiment.model.without_lora,
        recipe=IMITATION,
        optimizer=warm.optimizer,
        group_size=1,
        updates=warm.limit,
        chunk=experiment.train.chunk,
    )


def settings(experiment: Experiment) -> dict[str, str]:
    """Dotted path -> canonical text of every setting: what `config.json` stores and a resume compares."""
    return dict(_flat("", experiment))


def data_digest(experiment: Experiment) -> str:
    """Of the data that the settings only name: that of `data`, and where there are further sets those of all."""
    if not experiment.heldout:
        return experiment.data.digest
    parts = [experiment.data.digest, *(f"{name} {task.digest}" for name, task in sorted(experiment.heldout.items()))]
    return sha256("\n".join(parts).encode()).hexdigest()


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        rows = []
        for entry in dataclasses.fields(value):
            rows += _flat(f"{prefix}.{entry.name}" if prefix else entry.name, getattr(value, entry.name))
        return rows
    if isinstance(value, Mapping) and any(dataclasses.is_dataclass(item) for item in value.values()):
        return [row for name, item in sorted(value.items()) for row in _flat(f"{prefix}.{name}", item)]
    return [(prefix, objectives.describe(value, name=prefix))]
