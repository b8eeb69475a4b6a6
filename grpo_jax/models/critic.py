"""The critic: what it adds to the parameters of a policy, and the value that it gives a state.

``params["critic"]`` holds a linear head, ``weight`` f32[D] and ``bias`` f32[]. Alone it reads the normed output of the
policy's last layer. Beside a decoder of its own, called as the policy's is (``embed``, ``norm``, ``layers``, ...), it
reads that one's: which of the two a critic is, is decided by which parameters are there.
"""

import jax
import jax.numpy as jnp

from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array, Params

CRITIC = "critic"
"""Where the parameters of a critic are in those of a model."""
HEAD = ("weight", "bias")


def without_critic(params: Params) -> Params:
    """What samples and refers: `params` without the critic."""
    return {name: part for name, part in params.items() if name != CRITIC}


def trunk(params: Params) -> Params:
    """The parameters whose output the value head reads: the tower of the critic, else those of the policy."""
    critic = params.get(CRITIC, {})
    return critic if "layers" in critic else params


def from_policy(params: Params) -> Params:
    """`params` whose tower is a copy of the policy's decoder, its value head as it was; without a tower: `params`.

    A value is a statement about the text that the policy reads, so the tower begins where the policy has come to (the
    default of verl and OpenRLHF), and not at random numbers. The arrays are copies: a step may use up both.
    """
    if trunk(params) is params:
        return params
    own = {name: jax.tree.map(jnp.copy, params[name]) for name in params[CRITIC] if name not in HEAD}
    return {**params, CRITIC: {**params[CRITIC], **own}}


def value(params: Params, x: Array, config: ModelConfig) -> Array:
    """Values f32[...] of states whose trunk's last layer put out x [..., D]: ``rms_norm(x) . weight + bias``.

    With ``config.critic_detached`` no gradient of a value reaches the trunk.
    """
    normed = layers.rms_norm(x, trunk(params)["norm"], config)
    if config.critic_detached:
        normed = jax.lax.stop_gradient(normed)
    wide, head = layers.accumulator(x.dtype), params[CRITIC]
    found = jnp.einsum("...d,d->...", normed, head["weight"], preferred_element_type=wide)
    return found + head["bias"].astype(wide)
