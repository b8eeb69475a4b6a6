"""Products of a direction with the Fisher information of a policy: the curvature of its KL divergence.

The information is that of the whole distribution of every token, not of the token that was sampled, and it is never
stored: a product costs about as much as a gradient, and logits exist for one chunk of tokens at a time.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.models import layers
from grpo_jax.models.arrange import arrange, shifted
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.logprobs import chunk_of, chunked, completions
from grpo_jax.models.parts import join
from grpo_jax.models.replay import placed
from grpo_jax.sharding import constrain
from grpo_jax.types import Array, Params, Rollouts


def fisher(
    params: Params,
    config: ModelConfig,
    rollouts: Rollouts,
    weight: Array,
    *,
    temperature: float | Array,
    group_size: int | None = None,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    frozen: Params | None = None,
    replay: bool = True,
) -> Callable[[Params], Params]:
    """The function ``v -> F v`` at `params`, both trees of the structure and dtypes of `params`.

    With z[n,t] f32[V] the logits of a token of `rollouts`, J[n,t] their Jacobian, ``p = softmax(z / temperature)`` and
    `weight` f32[N,T], 0 past the end of a row,

        F = sum_{n,t} weight[n,t] J[n,t]^T (diag p - p p^T) J[n,t] / temperature^2

    which is the Hessian at `params` of ``sum weight KL(pi_params || pi)``, and of the divergence the other way round:
    the second derivative of the logits drops out there, because the gradient of the divergence is zero. F is symmetric
    and has no negative eigenvalue.

    The forward pass is linearised once, here; a product is then one pass forward and one backward, without another
    evaluation. What the backward pass needs is kept for as long as the function is. It is derived from the plain
    formulation whatever ``config.backward`` says, since the fast one has no forward mode. `group_size`, `chunk`, `mesh`
    and `replay` as in `logprobs`. Where parameters are `frozen`, `params` are the others, and F is of these.
    """
    config = dataclasses.replace(config, backward="plain")
    prompts = rollouts.prompts
    places = arrange(rollouts.prompt, prompts.tokens.shape[0], group_size)
    inputs, _, read = shifted(rollouts, places)
    scale = jnp.where(read, places.gather(weight), 0)
    inputs, scale = (constrain(x, mesh, ("prompts", None, None)) for x in (inputs, scale))
    chunk = chunk or chunk_of(config)
    recorded = placed(rollouts, places) if replay else None

    def outputs(params: Params) -> Array:
        whole = layers.cast(join(params, frozen), config)
        return completions(whole, config, prompts, inputs, mesh, recorded=recorded)

    x, push = jax.linearize(outputs, params)
    pull = jax.linear_transpose(push, params)

    def product(vector: Params) -> Params:
        moved = jax.lax.stop_gradient(push(vector))

        def along(params: Params, x: Array) -> Array:
            score = functools.partial(_along, params, vector, config, temperature=temperature, frozen=frozen)
            return jnp.sum(chunked(score, jnp.concatenate([x, moved], axis=-1), scale, chunk, mesh)["along"])

        of_head, of_outputs = jax.grad(along, argnums=(0, 1))(params, x)
        return jax.tree.map(jnp.add, of_head, pull(of_outputs)[0])

    return product


def _along(
    params: Params,
    vector: Params,
    config: ModelConfig,
    x: Array,
    weight: Array,
    *,
    temperature: float | Array,
    frozen: Params | None = None,
) -> dict[str, Array]:
    """A number a token, f32[...], whose gradient with respect to the logits is ``weight (diag p - p p^T) dz / tau^2``.

    The output of the last layer and its change in the direction stand behind each other in x [..., 2 D]; dz is the
    change of the logits that these and the `vector` make together.
    """
    own, moved = jnp.split(x, 2, axis=-1)
    params, vector = layers.cast(params, config), layers.cast(vector, config)

    def outputs(params: Params, own: Array) -> Array:
        return layers.unembed(params if frozen is None else join(params, layers.cast(frozen, config)), own, config)

    logits, change = jax.jvp(outputs, (params, own), (vector, moved))
    tau = jnp.asarray(temperature, logits.dtype)
    p = jax.nn.softmax(logits / tau, axis=-1)
    slope = p * (change - jnp.sum(p * change, axis=-1, keepdims=True)) / (tau * tau)
    return {"along": weight.astype(logits.dtype) * jnp.sum(jax.lax.stop_gradient(slope) * logits, axis=-1)}
