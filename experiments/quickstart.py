"""A language model learns multi-step arithmetic by GRPO, from nothing, in about two minutes on a laptop."""

from grpo_jax import cli
from grpo_jax.data import Chain
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

TASK = Chain(styles=(0.5, 0.1, 0.4))

EXPERIMENT = Experiment(
    name="quickstart",
    task=TASK,
    model=ModelConfig(
        vocab=TASK.tokenizer.vocab_size,
        width=64,
        layers=3,
        heads=4,
        kv_heads=4,
        head_width=16,
        hidden=256,
        positions=TASK.prompt_width + TASK.completion_width,
        rope_theta=1000.0,
    ),
    sampling=Sampling(max_tokens=TASK.completion_width, stop=(TASK.tokenizer.eos,)),
    recipe=grpo(beta=0.0),
    reward=TASK.reward(),
    text_rewards=tuple((name, function, weight) for name, (function, weight) in TASK.text_rewards().items()),
    train=Train(steps=100, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=4e-4, warmup=5, schedule="linear", final=0.05),
    warm_start=WarmStart(
        steps=1000,
        limit=2600,
        gate=0.32,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    evaluation=Evaluation(every=10, prompts=512, full_prompts=2048, samples=4),
    saving=Saving(every=10, warm_every=500),
)

if __name__ == "__main__":
    cli.main_for(__file__)
