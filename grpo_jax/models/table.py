"""The parameter table: name -> shape, logical axes, initial deviation. What is known of a parameter comes from here.

Names look like ``layers/3/query`` and are the same for both layouts of the layers: those of the layout with one array a
layer. `flat` gives a tree of either layout those names; what is written to disk is the tree of `unstack`, and `stack`
brings it back to the other layout.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import CRITIC, from_policy
from grpo_jax.models.lora import INPUTS, A, B, LoRA, is_adapter
from grpo_jax.types import Array, Params


class Entry(NamedTuple):
    """One parameter."""

    shape: tuple[int, ...]
    axes: tuple[
        str, ...
    ]  # logical axis of every dimension: vocab, position, embed, heads, kv_heads, head, mlp, experts, layers, rank
    std: float | None  # standard deviation of the normal initial values; None: all ones
    dtype: str | None = None  # None: that of the parameters of the model


def layer_table(config: ModelConfig, layer: int = 0) -> dict[str, Entry]:
    """The parameters of one layer. The matrices that write to the residual stream are divided by sqrt(2 L)."""
    found = {**_attention_table(config), **(_mixture_table if config.is_mixture(layer) else _mlp_table)(config)}
    return found if config.lora is None else _adapted(found, config.lora, f"layers/{layer}/")


def _attention_table(config: ModelConfig) -> dict[str, Entry]:
    d, h, j, c = config.width, config.heads, config.kv_heads, config.head_width
    into, from_heads = config.weight_std or d**-0.5, config.weight_std or (h * c) ** -0.5
    found = {
        "attention_norm": _norm(config, d, "embed"),
        "query": Entry((d, h, c), ("embed", "heads", "head"), into),
        "key": Entry((d, j, c), ("embed", "kv_heads", "head"), into),
        "value": Entry((d, j, c), ("embed", "kv_heads", "head"), into),
        "output": Entry((h, c, d), ("heads", "head", "embed"), from_heads * _residual(config)),
    }
    if config.qkv_bias:
        found["query_bias"] = Entry((h, c), ("heads", "head"), 0.0)
        found |= {name: Entry((j, c), ("kv_heads", "head"), 0.0) for name in ("key_bias", "value_bias")}
    if config.output_bias:
        found["output_bias"] = Entry((d,), ("embed",), 0.0)
    if config.query_key_norm:
        found |= {name: _norm(config, c, "head") for name in ("query_norm", "key_norm")}
    if config.post_norms:
        found |= {name: _norm(config, d, "embed") for name in ("attention_post_norm", "mlp_post_norm")}
    return found


def _mlp_table(config: ModelConfig) -> dict[str, Entry]:
    d, f = config.width, config.hidden
    into, from_hidden = config.weight_std or d**-0.5, config.weight_std or f**-0.5
    gate = {"gate": Entry((d, f), ("embed", "mlp"), into)} if config.gated else {}
    found = {
        "mlp_norm": _norm(config, d, "embed"),
        **gate,
        "up": Entry((d, f), ("embed", "mlp"), into),
        "down": Entry((f, d), ("mlp", "embed"), from_hidden * _residual(config)),
    }
    if config.mlp_bias:
        found |= {f"{name}_bias": Entry((f,), ("mlp",), 0.0) for name in ("gate", "up") if name in found}
        found["down_bias"] = Entry((d,), ("embed",), 0.0)
    return found


def _mixture_table(config: ModelConfig) -> dict[str, Entry]:
    d, e, f = config.width, config.experts, config.expert_hidden
    into, from_hidden = config.weight_std or d**-0.5, config.weight_std or f**-0.5
    wide = Entry((e, d, f), ("experts", "embed", "mlp"), into)
    return {
        "mlp_norm": _norm(config, d, "embed"),
        "router": Entry((d, e), ("embed", "experts"), into),
        "expert_gate": wide,
        "expert_up": wide,
        "expert_down": Entry((e, f, d), ("experts", "mlp", "embed"), from_hidden * _residual(config)),
    }


def _adapted(found: dict[str, Entry], lora: LoRA, path: str) -> dict[str, Entry]:
    """`found` with the two matrices of an adapter for each entry that has one, beside which they stand."""
    more = {}
    for name, entry in found.items():
        if lora.on(path + name):
            cut, dtype = INPUTS[name], lora.dtype
            inputs, outputs = entry.shape[:cut], entry.shape[cut:]
            into, out = entry.axes[:cut], entry.axes[cut:]
            more[name + A] = Entry((*inputs, lora.rank), (*into, "rank"), float(math.prod(inputs)) ** -0.5, dtype)
            more[name + B] = Entry((lora.rank, *outputs), ("rank", *out), 0.0, dtype)
    return {**found, **more}


def _norm(config: ModelConfig, size: int, axis: str) -> Entry:
    """A norm multiplies by 1 at first: by its offset and 0, or by ones."""
    return Entry((size,), (axis,), 0.0 if config.norm_offset == 1 else None)


def _residual(config: ModelConfig) -> float:
    return (2 * config.layers) ** -0.5


def outer_table(config: ModelConfig) -> dict[str, Entry]:
    """The parameters outside the layers."""
    v, d, p = config.vocab, config.width, config.positions
    position = {"position": Entry((p, d), ("position", "embed"), config.embed_std)} if p else {}
    head = {} if config.tied else {"head": Entry((d, v), ("embed", "vocab"), config.head_std)}
    found = {
        "embed": Entry((v, d), ("vocab", "embed"), config.embed_std),
        **position,
        "norm": _norm(config, d, "embed"),
        **head,
    }
    return found if config.lora is None else _adapted(found, config.lora, "")


def critic_table(config: ModelConfig) -> dict[str, Entry]:
    """The value head of a critic: every state is worth 0 at first."""
    return {"weight": Entry((config.width,), ("embed",), 0.0), "bias": Entry((), (), 0.0)} if config.critic else {}


def init(key: Array, config: ModelConfig) -> Params:
    """Initial parameters, float `config.param_dtype`. The values do not depend on the layout of the layers.

    All of them are cut from one draw, in the order of the tables: a draw for each takes seconds to compile. The draw is
    not sharded, so a model that no single device can hold is loaded, not drawn. A critic needs no number of it: its
    head is zero, its tower a copy of the policy's decoder, and the policy is the one that it is without a critic.
    """
    base = dataclasses.replace(config, critic=None, critic_detached=False, lora=None)
    params = _drawn(key, base, _tree(dataclasses.replace(base, stacked=False), lambda entry: entry))
    if config.critic is not None:
        fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract(config)[CRITIC])
        params = from_policy({**params, CRITIC: fresh})
    return params if config.lora is None else _beside(params, adapters(key, config))


def adapters(key: Array, config: ModelConfig) -> Params:
    """The initial adapters of `config`, a tree with them alone: A is drawn, B zero.

    They are cut from a draw of their own, so that the numbers of other parameters are those without adapters.
    """
    if config.lora is None:
        return {}
    apart = dataclasses.replace(config, critic=None, critic_detached=False, stacked=False)
    return _drawn(jax.random.fold_in(key, 1), config, _only_adapters(_tree(apart, lambda entry: entry)))


def _drawn(key: Array, config: ModelConfig, tree: dict) -> Params:
    """Arrays in the layout of `config` for a tree of entries with one dict a layer, cut from one draw."""
    entries, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, Entry))
    sizes = [0 if entry.std is None else math.prod(entry.shape) for entry in entries]
    noise = jnp.split(jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    leaves = [_initial(entry, cut, _dtype(entry, config)) for entry, cut in zip(entries, noise, strict=True)]
    params = jax.tree.unflatten(structure, leaves)
    return stack(params) if config.stacked and "layers" in params else params


def _only_adapters(tree: Mapping) -> dict:
    found = {name: part if isinstance(part, Entry) else _only_adapters(part) for name, part in tree.items()}
    return {name: part for name, part in found.items() if (is_adapter(name) if isinstance(part, Entry) else part)}


def _beside(tree: Mapping, more: Mapping) -> dict:
    """`tree` with the arrays of `more` in its dicts."""
    found = {**tree}
    for name, part in more.items():
        found[name] = _beside(tree[name], part) if name in tree else part
    return found


def _dtype(entry: Entry, config: ModelConfig) -> jnp.dtype:
    return jnp.dtype(entry.dtype or config.param_dtype)


def abstract(config: ModelConfig) -> Params:
    """The tree of `init` with a `jax.ShapeDtypeStruct` in place of every array."""
    return _tree(config, lambda entry: jax.ShapeDtypeStruct(entry.shape, _dtype(entry, config)))


def axes(config: ModelConfig) -> Mapping:
    """The tree of `init` with the tuple of logical axes in place of every array."""
    return _tree(config, lambda entry: entry.axes)


def unstack(params: Params) -> Params:
    """The tree with one entry a layer, ``layers/0/query`` and so on; the same tree when it is so already."""
    layers = params["layers"]
    if is_unstacked(layers):
        return params
    count = len(jax.tree.leaves(layers)[0])
    apart = {str(i): jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)}
    return {**params, "layers": apart, **_tower(unstack, params)}


def stack(params: Params) -> Params:
    """The tree whose layers share arrays with a leading axis L; the same tree when it is so already."""
    layers = params["layers"]
    if not is_unstacked(layers):
        return params
    ordered = [layers[str(i)] for i in range(len(layers))]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return {**params, "layers": together, **_tower(stack, params)}


def flat(params: Params) -> dict[str, Array]:
    """Name -> array, of either layout, with the names that checkpoints use."""
    leaves = jax.tree_util.tree_leaves_with_path(unstack(params))
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def is_unstacked(layers: Mapping) -> bool:
    """True for the layout with one entry a layer."""
    return all(name.isdigit() for name in layers)


def _tower(change: Callable[[Params], Params], params: Params) -> dict:
    """The critic of `params` with the layout of its layers changed, where it has layers."""
    critic = params.get(CRITIC, {})
    return {CRITIC: change(critic)} if "layers" in critic else {}


def _tree(config: ModelConfig, leaf: Callable[[Entry], object]) -> dict:
    policy = _policy(config, leaf)
    if config.critic is None:
        return policy
    head = {name: leaf(entry) for name, entry in critic_table(config).items()}
    # The decoder of a critic has no adapters: it is trained in full.
    tower = _policy(config.without_lora, leaf) if config.critic == "tower" else {}
    return {**policy, CRITIC: {**{name: part for name, part in tower.items() if name != "head"}, **head}}


def _policy(config: ModelConfig, leaf: Callable[[Entry], object]) -> dict:
    tables = [layer_table(config, layer) for layer in range(config.layers)]
    outer = outer_table(config)
    if config.lora is not None:
        config.lora.check([*(f"layers/{i}/{name}" for i, one in enumerate(tables) for name in one), *outer])
    if config.stacked:
        different = [i for i, one in enumerate(tables) if one.keys() != tables[0].keys()]
        if different:
            raise ValueError(
                f"model.lora.targets: got patterns with which layer {different[0]} has other adapters than layer 0,"
                " allowed with model.stacked=True are the same in all: set model.stacked=False, or name all layers"
            )
        leading = {
            n: e._replace(shape=(config.layers, *e.shape), axes=("layers", *e.axes)) for n, e in tables[0].items()
        }
        layers = {name: leaf(entry) for name, entry in leading.items()}
    else:
        layers = {str(i): {name: leaf(entry) for name, entry in one.items()} for i, one in enumerate(tables)}
    return {**{name: leaf(entry) for name, entry in outer.items()}, "layers": layers}


def _initial(entry: Entry, noise: Array, dtype: jnp.dtype) -> Array:
    if entry.std is None:
        return jnp.ones(entry.shape, dtype)
    return (entry.std * noise.reshape(entry.shape)).astype(dtype)
