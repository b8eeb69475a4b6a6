"""draft."""

from pathlib import Path

from grpo_jax import cli
from grpo_jax.data import Jsonl
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

DATA = Jsonl(
    str(Path(__file__).resolve().parent / "data" / "arithmetic.jsonl"), prompt_width=62, completion_width=22
)

EXPERIMENT = Experiment(
    name="from_jsonl",
    data=DATA,
    model=ModelConfig(
        vocab=DATA.tokenizer.vocab_size,
        width=64,
        layers=3,
        heads=4,
        kv_heads=4,
        head_width=16,
        hidden=256,
        positions=DATA.prompt_width + DATA.completion_width,
        rope_theta=1000.0,
    ),
    sampling=Sampling(max_tokens=DATA.completion_width, stop=(DATA.tokenizer.eos,)),
    recipe=grpo(beta=0.0),
    text_rewards=DATA.text_rewards(),
    train=Train(steps=60, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=4e-4, warmup=5, schedule="linear", final=0.05),
    warm_start=WarmStart(
        steps=1000,
        limit=2000,
        gate=0.3,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    evaluation=Evaluation(every=10, prompts=256, full_prompts=None, samples=4),
    saving=Saving(every=20, warm_every=500),
)

if __name__ == "__main__":
    cli.main_for(__file__)
