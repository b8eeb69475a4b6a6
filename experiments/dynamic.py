"""Dynamic sampling on the quickstart task: rounds of prompts until every group of a step teaches something.

    grpo-jax train experiments/dynamic.py                       # or: python experiments/dynamic.py
    grpo-jax train experiments/dynamic.py --variant without     # the same steps of one round each

Nothing differs from `experiments/quickstart.py` but `train.dynamic`. As the policy learns, more and more prompts are
solved by all of their completions, or by none: their advantages are 0. With dynamic sampling (DAPO, arXiv 2503.14476) a
step samples rounds of 32 prompts until 32 of them have completions of different rewards, at most four rounds; what is
left over is trained on first at the next step. So a step costs more samples, and each of its groups counts. Whether
that pays is measured by `benchmarks/dynamic_sampling.py` in steps, samples and CPU seconds (docs/dynamic_sampling.md).

``--variant by_accuracy`` asks the component "accuracy" instead of the whole reward: with a reward for the format, a
group of right answers of which one is badly formed is informative too, otherwise.
"""

from dataclasses import replace
from pathlib import Path

from grpo_jax import cli
from grpo_jax.dynamic import Dynamic
from grpo_jax.experiment import Experiment

QUICKSTART: Experiment = cli.load(Path(__file__).with_name("quickstart.py")).EXPERIMENT


def with_rounds(name: str, dynamic: Dynamic | None) -> Experiment:
    """The quickstart with these settings of dynamic sampling."""
    return replace(QUICKSTART, name=name, train=replace(QUICKSTART.train, dynamic=dynamic))


EXPERIMENT = with_rounds("dynamic", Dynamic(rounds=4))

VARIANTS = {
    "without": with_rounds("dynamic-without", None),
    "by_accuracy": with_rounds("dynamic-by-accuracy", Dynamic(rounds=4, component="accuracy")),
    "on_policy": with_rounds("dynamic-on-policy", Dynamic(rounds=4, max_age=0)),
}

if __name__ == "__main__":
    cli.main_for(__file__)
