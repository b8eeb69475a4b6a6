r"""GRPO on questions and answers in a file: plain-English arithmetic, read and written as bytes, scored as text.

    grpo-jax train experiments/from_jsonl.py --set data.path=FILE

or ``python experiments/from_jsonl.py --set data.path=FILE``, from any folder; without the setting, FILE is
`experiments/data/arithmetic.jsonl`, 2,450 lines of six categories which `experiments/data/make_arithmetic.py` wrote. A
line is ``{"prompt": "Ann has 6 nuts, buys 3, eats 4. Now?", "answer": "5", "solution": "6+3=9 9-4=5", "category":
"two steps"}``; "solution" may be missing, and other keys are kept as metadata, which rewards, groupings and evaluations
see: "category" gives every category an accuracy of its own, "match" says how the answer of a line is compared ("exact",
"numeric" or "choice", which goes by the letter or the text of one of the "options"). A tenth of the questions, chosen
by a hash, is held out.

What happens: a decoder of 0.19 million parameters first imitates the lines that have a solution. These are of mixed
quality, on purpose: of the lines of the file a sixth has no solution, and of the others half show every step and half
only the last one, whose first number has to be found in the head. GRPO then draws from all training lines and sees of
them only question and answer. The reward is a Python function of the decoded completion: 1 for the right answer, 0.2
for the format. The policy finds out that it pays to write down every step, and makes fewer slips in each.

``--variant by_category`` compares every completion with all those to questions of its category (``data.labels``,
`groups.by_label`) and not with those to the same question. ``--variant by_difficulty`` draws the lines by how often
they were solved (docs/dynamic_sampling.md).

Accuracy on all 239 held-out questions, 4 samples each at temperature 1, with 95 % intervals; the whole process from a
cold start on 2 cores of an AMD EPYC server (`benchmarks/from_jsonl.py`; ``--set seed=SEED``):

    seed   after the warm start      after 120 GRPO steps      greedy            s    CPU s
    0      58.1 % (53.3 to 62.5)     86.6 % (83.1 to 89.8)     73.2 to 91.2 %   80   128
    1      55.1 % (50.6 to 59.7)     82.5 % (79.1 to 86.0)     70.7 to 90.0 %   81   129
    2      56.1 % (51.9 to 60.5)     83.7 % (80.3 to 87.0)     73.2 to 90.4 %   84   136

Of "three steps" 36, 31 and 29 % are right before and 69, 58 and 63 % after; "add", "take away" and "compare" begin
above 80 %.

For a file of your own set the widths that its lines need: `data.prompt_width` and `data.completion_width` in bytes, and
with them `sampling.max_tokens` and `model.positions`; an error says which line and how much. With
``--set text_rewards.accuracy.0.match=numeric`` an answer of 0.50 is as good as 1/2. If no line has a solution there is
nothing to imitate: the run says so and stops. ``--set warm_start=None`` starts GRPO at once, which makes sense for a
policy that already earns something now and then; this one, fresh from its initial values, writes noise, and rewards
that are all 0 teach nothing.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from grpo_jax import cli
from grpo_jax.data import Difficulty, Jsonl
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.groups import by_label
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

DATA = Jsonl(str(Path(__file__).resolve().parent / "data" / "arithmetic.jsonl"), prompt_width=53, completion_width=22)

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
    text_rewards=DATA.text_rewards(match="stated"),
    train=Train(steps=120, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=4e-4, warmup=5, schedule="linear", final=0.05),
    warm_start=WarmStart(
        steps=1000,
        limit=1400,
        gate=0.3,
        check_every=100,
        rows=16,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    evaluation=Evaluation(every=10, prompts=200, full_prompts=None, samples=4),
    saving=Saving(every=20, warm_every=500),
)

VARIANTS = {
    # Every completion is compared with all those to questions of its category, not with those to its own question.
    "by_category": replace(
        EXPERIMENT,
        name="from_jsonl-by-category",
        data=replace(DATA, labels=("category",)),
        recipe=replace(EXPERIMENT.recipe, grouping=partial(by_label, name="category")),
    ),
    # Lines are drawn by how often they were solved, most often those solved every other time.
    "by_difficulty": replace(
        EXPERIMENT, name="from_jsonl-by-difficulty", train=replace(EXPERIMENT.train, difficulty=Difficulty())
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
