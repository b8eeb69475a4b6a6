r"""GRPO on questions with known answers, from any published checkpoint that `grpo_jax.models` reads.

    grpo-jax train experiments/math_jsonl.py --set checkpoint=DIR --set data=FILE

DIR is a folder with config.json, safetensors and the files of a tokenizer, or ``owner/name`` on the Hub (extra `hf`).
FILE has a line ``{"prompt": "...", "answer": "..."}`` for every question; `experiments/data/convert.py` makes
such files of GSM8K and MATH (docs/math_jsonl.md). A tenth of the questions, or those of ``--set heldout=FILE``, is held
out.

The policy reads the question in the chat template of the checkpoint, behind the instructions of DeepSeek-R1
(arXiv:2501.12948, table 1), and goes on behind ``<think>``. The reward is 1 for the right answer between ``<answer>``
and ``</answer>`` and 0.2 for the form ``... </think><answer> ... </answer>``. What is trained are low-rank adapters of
all matrices of the layers, or with ``--set full=True`` every parameter, in float32 with bfloat16 computation.

``--variant MODEL.CHIP`` takes the checkpoint, batch sizes and mesh of a row of `SETTINGS`, such as
``--variant qwen2.5-1.5b.v5e-8 --set data=FILE``. Without one the sizes are those of `Size`, for one device. Every
setting can be changed as in any other experiment: ``--set recipe=dapo --set train.steps=500``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grpo_jax import cli, models
from grpo_jax.data import Jsonl
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train
from grpo_jax.models import LoRA
from grpo_jax.objectives import grpo
from grpo_jax.rewards import text
from grpo_jax.sampling import Sampling
from grpo_jax.text import Chat, PretrainedTokenizer
from grpo_jax.updates import Optimizer
from grpo_jax.weights import Weights

INSTRUCTIONS = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant"
    " first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning"
    " process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e.,"
    " <think>reasoning process here</think><answer>answer here</answer>."
)
MATRICES = ("layers/*",)
"""Adapters on every matrix of the layers."""
GAPS = {"float32": 1e-3, "bfloat16": 1.0}
"""Dtype of the computation -> nats by which sampler and trainer may differ at a token: `Train.gap_limit`."""


@dataclass(frozen=True)
class Size:
    """Of a step, and on which devices. The shards of a batch divide the prompts of a micro-batch."""

    prompts: int = 8
    group_size: int = 8
    microbatches: int = 1
    prompt_width: int = 256
    completion_width: int = 512
    mesh: Mapping[str, int] | None = field(default=None, hash=False)


def math_jsonl(
    *,
    checkpoint: str,
    data: str,
    heldout: str | None = None,
    revision: str | None = None,
    full: bool = False,
    chat: bool = True,
    rank: int = 32,
    dtype: str = "bfloat16",
    match: str = "math",
    instructions: str = INSTRUCTIONS,
    size: Size = Size(),
) -> Experiment:
    """The experiment.

    Args:
      checkpoint: folder, or ``owner/name`` on the Hub.
      data: JSONL of questions and answers.
      heldout: a second file to hold out; None: a tenth of the questions of `data`.
      revision: branch, tag or commit on the Hub.
      full: train every parameter, and not adapters.
      chat: put questions into the chat template of the checkpoint; False: the prompt is plain text.
      rank: of the adapters.
      dtype: of the computation, and of parameters that are not trained; those that are trained are float32.
      match: how answers are compared, as in `grpo_jax.rewards.text.accuracy`.
      instructions: what stands before every question; "" for nothing. It is part of the message of the user, because
        not every template has one of the system.
      size: of a step, and on which devices.
    """
    weights = Weights(checkpoint, revision=revision)
    lora = None if full else LoRA(rank=rank, alpha=2.0 * rank, targets=MATRICES)
    how: dict[str, Any] = {
        "param_dtype": "float32" if full else dtype,
        "compute_dtype": dtype,
        "remat": "full",
        "lora": lora,
    }
    tokenizer: Any = PretrainedTokenizer(str(weights.folder))
    asked = f"{instructions}\n\n{{prompt}}" if instructions else "{prompt}"
    plain = f"{instructions}\nUser: {{prompt}}\nAssistant: <think>".lstrip()  # as R1-Zero is asked
    prompt: dict[str, Any] = {"chat": Chat(question=asked, prefix="<think>")} if chat else {"prompt": plain}
    task = Jsonl(
        data,
        prompt_width=size.prompt_width,
        completion_width=size.completion_width,
        heldout_share=0.1 if heldout is None else 0.0,
        heldout_path=heldout,
        tokenizer=tokenizer,
        too_long="drop",
        **prompt,
    )
    return Experiment(
        name="math_jsonl",
        data=task,
        model=models.read_config(weights.folder, **how),
        weights=weights,
        sampling=Sampling(max_tokens=size.completion_width, stop=tokenizer.stops),
        recipe=grpo(beta=0.0),
        text_rewards={
            "accuracy": (partial(text.accuracy, match=match), 1.0),
            "format": (partial(text.r1_format, spaces=True), 0.2),
        },
        train=Train(
            steps=200,
            prompts=size.prompts,
            group_size=size.group_size,
            microbatches=size.microbatches,
            gap_limit=GAPS.get(dtype, 1.0),
        ),
        optimizer=Optimizer(learning_rate=1e-6 if full else 1e-5, warmup=10),
        warm_start=None,
        evaluation=Evaluation(every=20, prompts=128, full_prompts=None, samples=1),
        saving=Saving(every=20),
        mesh=size.mesh,
    )


@dataclass(frozen=True)
class Chips:
    """Devices that a setting is for."""

    count: int
    gigabytes: float  # of memory a device, 10^9 bytes


CHIPS = {"v5e-8": Chips(8, 16.0), "v5p-64": Chips(32, 95.0), "h100": Chips(1, 80.0)}
"""A v5p-64 has 64 cores and 32 chips, and JAX sees chips. What fits one H100 fits one H200."""
HUB = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "gemma-3-1b": "google/gemma-3-1b-it",
}
SPREAD, ALL, SPLIT = {"fsdp": 8}, {"fsdp": 32}, {"fsdp": 2, "tensor": 4}

# model, chips: prompts, samples of each, micro-batches, width of prompts, of completions, mesh
SETTINGS = {
    ("qwen2.5-0.5b", "v5e-8"): (64, 8, 8, 512, 1024, SPREAD),
    ("qwen2.5-0.5b", "v5p-64"): (128, 8, 2, 512, 2048, ALL),
    ("qwen2.5-0.5b", "h100"): (32, 8, 8, 512, 1024, None),
    ("qwen2.5-1.5b", "v5e-8"): (64, 8, 8, 512, 1024, SPREAD),
    ("qwen2.5-1.5b", "v5p-64"): (128, 8, 2, 512, 2048, ALL),
    ("qwen2.5-1.5b", "h100"): (32, 8, 8, 512, 1024, None),
    ("qwen2.5-7b", "v5e-8"): (32, 8, 16, 512, 1024, SPLIT),
    ("qwen2.5-7b", "v5p-64"): (128, 8, 4, 512, 2048, ALL),
    ("qwen2.5-7b", "h100"): (16, 8, 16, 512, 1024, None),
    ("qwen3-0.6b", "v5e-8"): (32, 8, 4, 512, 1024, SPREAD),
    ("qwen3-0.6b", "v5p-64"): (128, 8, 4, 512, 2048, ALL),
    ("qwen3-0.6b", "h100"): (32, 8, 8, 512, 1024, None),
    ("qwen3-8b", "v5e-8"): (16, 8, 8, 512, 1024, SPLIT),
    ("qwen3-8b", "v5p-64"): (128, 8, 4, 512, 2048, ALL),
    ("qwen3-8b", "h100"): (16, 8, 16, 512, 1024, None),
    ("llama-3.2-1b", "v5e-8"): (64, 8, 8, 512, 1024, SPREAD),
    ("llama-3.2-1b", "v5p-64"): (128, 8, 2, 512, 2048, ALL),
    ("llama-3.2-1b", "h100"): (32, 8, 8, 512, 1024, None),
    ("gemma-3-1b", "v5e-8"): (64, 8, 8, 512, 1024, SPREAD),
    ("gemma-3-1b", "v5p-64"): (128, 8, 2, 512, 2048, ALL),
    ("gemma-3-1b", "h100"): (32, 8, 8, 512, 1024, None),
}

EXPERIMENT = math_jsonl
VARIANTS = {
    f"{model}.{chips}": partial(math_jsonl, checkpoint=HUB[model], size=Size(*numbers))
    for (model, chips), numbers in SETTINGS.items()
}

if __name__ == "__main__":
    cli.main_for(__file__)
