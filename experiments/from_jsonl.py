r"""GRPO on questions and answers in a file: plain-English arithmetic, read and written as bytes, scored as text.

    grpo-jax train experiments/from_jsonl.py --set data.path=FILE

or ``python experiments/from_jsonl.py --set data.path=FILE``, from any folder; without the setting, FILE is
`experiments/data/arithmetic.jsonl`, 3,000 lines which `experiments/data/make_arithmetic.py` wrote. A line is
``{"prompt": "Ann has 6 nuts, buys 3 and eats 4. How many now?", "answer": "5", "solution": "6+3=9 9-4=5"}``; "solution"
may be missing and other keys are kept as metadata. A tenth of the questions, chosen by a hash, is held out.

What happens: a decoder of 0.19 million parameters first imitates the lines that have a solution, until it answers some
held-out questions. Those solutions are of mixed quality, and not by accident: of the lines of this file a third has
none, a third shows every step and a third only the last one, whose numbers must be found in the head. GRPO then sees
all lines, and of them only question and answer. The reward is a Python function of the decoded completion: 1 for the
right answer and 0.2 for the format. It has to find out that it pays to write down every step, and to make fewer slips.

@RESULT@

For a file of your own, set what its lines need: an error names file and line and the width to ask for (`data.prompt_width`
and `data.completion_width` in bytes, with `sampling.max_tokens` and `model.positions`, their sum), and
`--set text_rewards.accuracy.0.match=numeric` lets ``0.50`` stand for ``1/2``. Where no line has a solution there is
nothing to imitate: the run says so and stops, and ``--set warm_start=None`` starts GRPO at once. Do that with a policy that
can already earn something; this one, made from nothing, would only write noise, and from rewards that are all 0 nothing
is learned.
"""

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
    train=Train(steps=100, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=4e-4, warmup=5, schedule="linear", final=0.05),
    warm_start=WarmStart(
        steps=1000,
        limit=2000,
        gate=0.3,
        check_every=100,
        rows=16,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    evaluation=Evaluation(every=10, prompts=256, full_prompts=None, samples=4),
    saving=Saving(every=20, warm_every=500),
)

if __name__ == "__main__":
    cli.main_for(__file__)
