"""GRPO in one file: all that turns a random transformer into one that adds, with jax and optax and nothing else.

    python experiments/minimal.py

Two digits from 0 to 4 are to be added: "3+4=" asks for "7;". There is no demonstration and no pretraining: all that is
learned is learned from the reward. Measured on two cores of an x86 server with seeds 0, 1 and 2: mean reward below 0.01
in the first step, 0.99, 1.00 and 0.99 in the fiftieth, after 24 to 30 seconds of processor time, compilation included.

The algorithm is that of Shao et al. 2024 (arXiv:2402.03300). Sample a group of answers to every question; score them;
take as advantage of an answer its distance from the mean score of its group, in standard deviations; and follow the
clipped policy gradient for a few steps, if wanted with a penalty on the KL divergence from a reference policy.

Left out, and done by the library: a key/value cache, the prompt encoded once for its group, prompts of unequal length,
temperature and truncation, log-probabilities in chunks, rows that could not be scored, minibatches, other objectives,
bfloat16, meshes, randomness that belongs to a row and not to its place in the batch, held-out evaluation, checkpoints,
logs, and the refusal of updates that are not finite. On the same batch, one update of this file and one of the library
give the same loss, gradient and parameters, and a test says so.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

ALPHABET = "0123456789+=;"
STOP = ALPHABET.index(";")
QUESTIONS = [f"{a}+{b}=" for a in range(5) for b in range(5)]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3, b2=0.95, eps=1e-5))


class Config(NamedTuple):
    """Sizes of the model, the task and a step."""

    width: int = 32  # D
    layers: int = 2
    heads: int = 4  # H
    hidden: int = 128  # F
    rope_theta: float = 1000.0
    prompt: int = 4  # S, tokens of "3+4="
    answer: int = 3  # T, room for "7;" and for not stopping
    group: int = 32  # G, answers to a question
    clip: float = 0.2
    beta: float = 0.0  # weight of the KL penalty
    updates: int = 4  # gradient steps on a batch
    steps: int = 50


def init(key, config):
    """Nested dicts: norms of one, normal matrices, those that write to the residual stream divided by sqrt(2 L)."""
    d, h, f, v, out = config.width, config.heads, config.hidden, len(ALPHABET), (2 * config.layers) ** -0.5
    keys = iter(jax.random.split(key, 3 + 6 * config.layers))

    def normal(std, *shape):
        return std * jax.random.normal(next(keys), shape, jnp.float32)

    def layer():
        return {
            "attention_norm": jnp.ones(d, jnp.float32),
            **{name: normal(d**-0.5, d, h, d // h) for name in ("query", "key", "value")},
            "output": normal(out * d**-0.5, h, d // h, d),
            "mlp_norm": jnp.ones(d, jnp.float32),
            "up": normal(d**-0.5, d, f),
            "down": normal(out * f**-0.5, f, d),
        }

    return {
        "embed": normal(0.5, v, d),
        "position": normal(0.5, config.prompt + config.answer, d),
        "layers": {str(i): layer() for i in range(config.layers)},
        "norm": jnp.ones(d, jnp.float32),
        "head": normal(0.02, d, v),
    }


def rms_norm(x, scale):
    """x / sqrt(mean(x^2)) * scale."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale[None, None, :]


def rotate(x, theta):
    """Rotary positions on [B, T, H, C]: entries i and i + C/2 turn by position * theta^(-2i/C)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequency[None, :])[None, :, None, :]
    first, second, cos, sin = x[..., :half], x[..., half:], jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def forward(params, tokens, config):
    """Logits [B, T, V] of the token after each of `tokens` [B, T]."""
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None, None]
    x = params["embed"][tokens] + params["position"][None, : tokens.shape[1]]
    for i in range(config.layers):
        layer = params["layers"][str(i)]
        normed = rms_norm(x, layer["attention_norm"])
        query, key, value = (jnp.einsum("btd,dhc->bthc", normed, layer[name]) for name in ("query", "key", "value"))
        query, key = rotate(query, config.rope_theta), rotate(key, config.rope_theta)
        scores = jnp.einsum("bthc,bshc->bhts", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30), axis=-1)
        x = x + jnp.einsum("bhts,bshc,hcd->btd", weights, value, layer["output"])
        x = x + jax.nn.gelu(rms_norm(x, layer["mlp_norm"]) @ layer["up"]) @ layer["down"]
    return rms_norm(x, params["norm"]) @ params["head"]


def encode(texts):
    """Token ids [N, S] of strings of one length."""
    return jnp.asarray([[ALPHABET.index(character) for character in text] for text in texts], jnp.int32)


def decode(tokens, mask):
    """The strings of the tokens that count."""
    rows = zip(tokens.tolist(), mask.tolist(), strict=True)
    return ["".join(ALPHABET[t] for t, m in zip(*row, strict=True) if m) for row in rows]


def reward(question, answer):
    """1 for the right sum followed by the stop token, else 0: "3+4=" is answered by "7;"."""
    a, b = question.removesuffix("=").split("+")
    return float(answer == f"{int(a) + int(b)};")


class Batch(NamedTuple):
    """What an update reads. N = P * G rows; the G samples of a prompt are neighbours."""

    prompts: jax.Array  # [N, S]
    tokens: jax.Array  # [N, T]
    mask: jax.Array  # [N, T], True up to the stop token, which counts
    advantage: jax.Array  # [N]
    logp_old: jax.Array  # [N, T], policy that sampled
    logp_ref: jax.Array  # [N, T], reference policy


@jax.jit(static_argnames="config")
def sample(params, prompts, key, config):
    """Answers [N, T] to prompts [N, S] and the mask of the tokens up to the first stop."""
    tokens = prompts
    for i in range(config.answer):
        logits = forward(params, tokens, config)[:, -1]
        token = jax.random.categorical(jax.random.fold_in(key, i), logits)
        tokens = jnp.concatenate([tokens, token[:, None]], axis=1)
    tokens = tokens[:, config.prompt :]
    stops = (tokens == STOP).astype(jnp.int32)
    return tokens, jnp.cumsum(stops, axis=1) - stops == 0


@jax.jit(static_argnames="config")
def logprobs(params, prompts, tokens, config):
    """log pi(token | everything before it), [N, T]."""
    logits = forward(params, jnp.concatenate([prompts, tokens], axis=1), config)[:, config.prompt - 1 : -1]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, :, None], axis=2)[:, :, 0]


def advantages(rewards, group):
    """(r - mean) / (std + 1e-6) over groups of neighbouring rows [N], std with divisor G - 1; 0 where all agree."""
    rewards = rewards.reshape(-1, group)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    return (centred / (jnp.std(rewards, axis=1, keepdims=True, ddof=1) + 1e-6)).reshape(-1)


def loss(params, batch, config):
    """-mean over rows of mean over tokens of [min(ratio A, clip(ratio, 1 - c, 1 + c) A) - beta KL]."""
    logp = logprobs(params, batch.prompts, batch.tokens, config)
    ratio = jnp.exp(logp - batch.logp_old)
    advantage = batch.advantage[:, None]
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage)
    kl = jnp.exp(batch.logp_ref - logp) - (batch.logp_ref - logp) - 1  # unbiased and never negative ("k3")
    return -jnp.mean(jnp.mean(surrogate - config.beta * kl, axis=1, where=batch.mask))


@jax.jit(static_argnames="config")
def update(params, state, batch, config):
    """One gradient step: new parameters, new optimiser state, loss, gradient."""
    value, gradient = jax.value_and_grad(loss)(params, batch, config)
    step, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, step), state, value, gradient


def main(config, seed=0):
    """A whole run; returns the mean reward of every step."""
    params = reference = init(jax.random.key(seed), config)
    state = OPTIMIZER.init(params)
    asked = [question for question in QUESTIONS for _ in range(config.group)]
    prompts, history = encode(asked), []
    for step in range(config.steps):
        tokens, mask = sample(params, prompts, jax.random.fold_in(jax.random.key(seed + 1), step), config)
        scores = jnp.asarray([reward(*pair) for pair in zip(asked, decode(tokens, mask), strict=True)], jnp.float32)
        logp_old, logp_ref = (logprobs(policy, prompts, tokens, config) for policy in (params, reference))
        batch = Batch(prompts, tokens, mask, advantages(scores, config.group), logp_old, logp_ref)
        for _ in range(config.updates):
            params, state, _, _ = update(params, state, batch, config)
        history.append(float(jnp.mean(scores)))
        if step % 10 == 0:
            print(f"step {step:2d}  reward {history[-1]:.3f}", flush=True)
    return history


if __name__ == "__main__":
    rewards = main(Config())
    print(f"reward of the first step {rewards[0]:.3f}, of the last {rewards[-1]:.3f}")
