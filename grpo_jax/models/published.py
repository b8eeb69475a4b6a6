"""config.json of a published checkpoint <-> ModelConfig, from the data of `families`.

Every field of a file is honoured, known to be harmless, or refused.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families import ACTIVATIONS, FAMILIES, UNREAD, WITH_PICTURES, Family, family_of
from grpo_jax.models.fields import MOST, REQUIRED, Fields
from grpo_jax.models.rope_fields import FULL, SLIDING, read_one, read_two, write_one
from grpo_jax.models.safetensors import brief, parse_object

MAX_BYTES = 2**20
"""Bytes of the longest config.json read."""
MAX_LAYERS = 4096
MAX_EXPERTS = 2**16
HOW = (
    "param_dtype compute_dtype logprob_dtype stacked remat backward expert_path"
    " critic critic_detached embed_std head_std weight_std lora"
)
"""Fields of ModelConfig that say how a model is computed, initialised or trained here, and not which one it is."""
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def read_config(path: str | os.PathLike, **changes: Any) -> ModelConfig:
    """The model that a checkpoint's config.json describes.

    Args:
      path: the file, or the folder that it is in.
      **changes: fields of ModelConfig that say how to compute: `param_dtype`, `compute_dtype`, `stacked`, `remat`, ...
        Without one, `param_dtype` is the dtype that the file names, else float32.

    Raises:
      ValueError: an unknown architecture (with the known ones), or fields that change the computation in a way that is
        not computed here: all of them at once.
      OSError: the file cannot be read.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"{path}: got more than {MAX_BYTES} bytes, allowed are fewer: no model is described by so many"
        )
    return from_fields(parse_object(text, what=str(path)), where=str(path), **changes)


def from_fields(content: Mapping[str, Any], *, where: str, **changes: Any) -> ModelConfig:
    """`read_config` of fields that have been read already; messages call their file `where`."""
    _check_changes(changes)
    names = content.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(
            f"{where}: got architectures {brief(names)}, allowed is a list of one of {', '.join(FAMILIES)}: it decides"
            " what is computed, so write it into the file"
        )
    if names[0] in WITH_PICTURES:
        return from_fields(_text_part(content, names[0], where=where), where=f"{where} (text_config)", **changes)
    family = family_of(names[0], where=where)
    fields = Fields(content, where=where)
    if content.get("model_type", family.model_type) != family.model_type:
        fields.refuse("model_type", content["model_type"], f"{family.model_type}, as {family.architecture} has")
    found = _read(fields, family)
    fields.close()
    dtype = content.get("dtype", content.get("torch_dtype"))
    kept = {"param_dtype": dtype} if dtype in _DTYPES else {}
    try:
        return ModelConfig(**{**found, **kept, **changes})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _text_part(content: Mapping[str, Any], architecture: str, *, where: str) -> dict[str, Any]:
    """The config.json that the text part of a model for pictures and text would have alone."""
    inside, defaults = WITH_PICTURES[architecture]
    text = content.get("text_config")
    fields = Fields(content, where=where)
    if not isinstance(text, dict):
        fields.refuse("text_config", text, "an object")
        text = {}
    tied = text.get("tie_word_embeddings", True)
    fields.only({"tie_word_embeddings": (tied,)})
    for name in ("text_config", "vision_config", "mm_tokens_per_image"):
        fields.any(name)
    for name in (f"{kind}_token_{end}" for kind in ("boi", "eoi", "image") for end in ("index", "id")):
        fields.any(name)
    fields.close()
    dtypes = {name: content[name] for name in ("dtype", "torch_dtype") if name in content}
    return {**defaults, **dtypes, **text, "architectures": [inside]}


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """The config.json, in the form of transformers 5, of the family that expresses `config`.

    The family is `config.family`, or the first that fits where that is None. Raises ValueError that says what of
    `config` no family, or not this one, expresses.
    """
    families = list(FAMILIES.values()) if config.family is None else [family_of(config.family, where="config.family")]
    misfits = {}
    for family in families:
        content = _write(config, family)
        misfits[family.architecture] = _misfits(config, content, family)
        if not misfits[family.architecture]:
            return content
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    raise ValueError(
        f"config: {nearest} cannot express {'; '.join(misfits[nearest])}"
        + ("" if len(families) == 1 else f" (and is the nearest of {', '.join(FAMILIES)})")
        + ": a folder in this format cannot hold the model; keep it as a checkpoint of ours, or change these fields"
    )


def _check_changes(changes: Mapping[str, Any]) -> None:
    allowed = [field.name for field in dataclasses.fields(ModelConfig) if field.name in HOW.split()]
    for name in changes:
        if name not in allowed:
            raise ValueError(
                f"{name}: got {brief(changes[name])} as a change of a published model, allowed are changes of"
                f" {', '.join(allowed)}: the rest is what its weights were made for"
            )


def _read(fields: Fields, family: Family) -> dict[str, Any]:
    found: dict[str, Any] = {"family": family.architecture, **family.fixed}
    most = {"layers": MAX_LAYERS}
    for name, (field, default) in family.counts.items():
        found[name] = fields.count(field, default, most=most.get(name, MOST))
    for name, (field, default) in family.amounts.items():
        found[name] = fields.amount(field, default, null=name.endswith("_cap")) or 0.0
    for name, (field, default) in family.switches.items():
        found[name] = fields.switch(field, default)
    if "attention_bias" in {field for field, _ in family.switches.values()}:
        found["output_bias"] = found["qkv_bias"]
    fields.only(family.only)
    for name in UNREAD.get(family.architecture, ()):
        fields.any(name)
    found["activation"] = _activation(fields, family)
    found |= _heads(fields, family, found)
    context = fields.count("max_position_embeddings", family.context)
    found["context"] = context
    found |= _windows(fields, family, found["layers"])
    found |= _rotations(fields, family, context, found["windows"])
    if not found["rope_theta"]:
        fields.refuse("rope_theta", 0, "numbers above 0")
    if family.embed_scaled:
        found["embed_scale"] = found["width"] ** 0.5
    return found | _experts(fields, family, found)


def _activation(fields: Fields, family: Family) -> str:
    field, default = family.activation
    if field == "hidden_act":
        return fields.choice(field, ACTIVATIONS, default)
    # Gemma's files carry a second, older field beside the one that its modelling reads.
    found = fields.choice(field, ACTIVATIONS, default) if fields.has(field) else ACTIVATIONS[default]
    fields.any(field)
    if fields.has("hidden_act") and fields.choice("hidden_act", ACTIVATIONS) != found:
        fields.refuse("hidden_act", "another function", f"the one of {field}, which decides")
    fields.any("hidden_act")
    return found


def _heads(fields: Fields, family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = found["heads"], found["width"]
    kv_heads = fields.count("num_key_value_heads", family.kv_heads, null=True)
    size = fields.count("head_dim", family.head_width, null=family.head_width is None)
    if size is None and width % heads:
        fields.refuse("head_dim", None, f"a number, where hidden_size {width} is no multiple of {heads} heads")
    size = max(width // heads, 1) if size is None else size
    scale = 0.0
    if family.query_scalar:
        scalar = fields.amount("query_pre_attn_scalar", 256)
        if scalar <= 0:
            fields.refuse("query_pre_attn_scalar", scalar, "numbers above 0")
        scale = 0.0 if scalar == size else max(scalar, 1e-6) ** -0.5
    return {"kv_heads": kv_heads or heads, "head_width": size, "query_scale": scale}


def _windows(fields: Fields, family: Family, layers: int) -> dict[str, Any]:
    """Width of the window of every layer, 0 for none; () where no layer has one."""
    kind, types, by_pattern = family.windows, fields.any("layer_types"), fields.has("sliding_window_pattern")
    if kind == "none":
        sliding = [False] * layers
        width = None
    else:
        width, sliding = _pattern(fields, family, layers, types is not None)
    if types is not None:
        good = isinstance(types, list) and len(types) == layers and all(one in (FULL, SLIDING) for one in types)
        if not good:
            fields.refuse("layer_types", types, f"a list of {layers}, each {FULL} or {SLIDING}")
            types = [FULL] * layers
        told = [one == SLIDING for one in types]
        fixed = kind in ("none", "all", "used_by_all") or (kind == "used_by_last" and width is None) or by_pattern
        if fixed and told != sliding:
            fields.refuse("layer_types", types, "what the fields of windows say")
        sliding = told
    if not any(sliding):
        return {"windows": ()}
    if width is None:
        fields.refuse("sliding_window", None, f"a number, as there are layers of {SLIDING}")
    return {"windows": tuple((width or 1) if one else 0 for one in sliding)}


def _pattern(fields: Fields, family: Family, layers: int, typed: bool) -> tuple[int | None, list[bool]]:
    """Width of windows, and which layers have one where `layer_types` does not say it."""
    kind = family.windows
    if kind in ("used_by_last", "used_by_all"):
        used = fields.switch("use_sliding_window", False)
        width = fields.count("sliding_window", REQUIRED if used else None, null=True)
        width = width if used else None
        since = fields.count(
            "max_window_layers",
            REQUIRED if used and not typed and kind == "used_by_last" else None,
            least=0,
            null=not used,
        )
        if kind == "used_by_all":
            if width is not None and since:
                fields.refuse(
                    "max_window_layers", since, "0 with use_sliding_window: versions of this architecture differ"
                )
            since = 0
        return width, [width is not None and i >= (since or 0) for i in range(layers)]
    width = fields.count("sliding_window", family.window, null=True)
    if kind == "all":
        return width, [width is not None] * layers
    every = 2
    if kind == "alternating":
        second = fields.count("sliding_window_size", None)
        if second is not None and second != width:
            fields.refuse("sliding_window_size", second, f"{width}, as sliding_window")
    else:
        every = fields.count("sliding_window_pattern", None)
        kept = fields.count("_sliding_window_pattern", None)
        every = every or (6 if typed else kept) or 6
    return width, [bool((i + 1) % every) for i in range(layers)]


def _rotations(fields: Fields, family: Family, context: int, windows: tuple[int, ...]) -> dict[str, Any]:
    if not family.local_theta:
        return read_one(fields, theta=family.theta, context=context)
    found = read_two(fields, theta=family.theta, local_theta=family.local_theta, context=context)
    same = found["rope_scaling"] is None and found["local_rope_theta"] == found["rope_theta"]
    return {**found, "local_rope_theta": 0.0 if same or not windows else found["local_rope_theta"]}


def _experts(fields: Fields, family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    if family.experts == "none":
        return {}
    older, newer = (
        fields.count(name, None, least=0, most=MAX_EXPERTS) for name in ("num_experts", "num_local_experts")
    )
    if older is None and newer is None:
        fields.refuse("num_experts" if family.experts == "qwen" else "num_local_experts", None, "a number")
    if None not in (older, newer) and older != newer:
        fields.refuse("num_experts", older, f"{newer}, as num_local_experts")
    count = (newer if older is None else older) or 0
    per_token = fields.count("num_experts_per_tok")
    if family.experts == "mixtral":
        return {"experts": count, "experts_per_token": per_token, "expert_hidden": found["hidden"]}
    hidden, renormalised = fields.count("moe_intermediate_size"), fields.switch("norm_topk_prob", False)
    step = fields.count("decoder_sparse_step", 1)
    dense = fields.any("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in dense):
        fields.refuse("mlp_only_layers", dense, "a list of layers")
        dense = []
    layers = found["layers"]
    ordinary = tuple(i for i in range(layers) if i in dense or (i + 1) % step)
    if not count or len(ordinary) == layers:
        return {}
    return {
        "experts": count,
        "experts_per_token": per_token,
        "expert_hidden": hidden,
        "expert_renormalised": renormalised,
        "dense_layers": ordinary,
    }


def _write(config: ModelConfig, family: Family) -> dict[str, Any]:
    content: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    written = {**family.counts, **family.amounts, **family.switches}
    for name, (field, _) in written.items():
        value = getattr(config, name)
        content[field] = None if name.endswith("_cap") and not value else value
    names: dict[str, str] = {}
    for name, own in ACTIVATIONS.items():
        names.setdefault(own, name)
    content[family.activation[0]] = names[config.activation]
    content |= {field: values[0] for field, values in family.only.items()}
    content |= {"num_key_value_heads": config.kv_heads, "head_dim": config.head_width, "attention_dropout": 0.0}
    dynamic = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
    made_for = config.rope_scaling.original_positions if config.rope_scaling is not None and dynamic else family.context
    content["max_position_embeddings"] = config.context or made_for
    if family.query_scalar:
        content["query_pre_attn_scalar"] = round(config.query_scale**-2) if config.query_scale else config.head_width
    content |= _write_windows(config, family) | _write_experts(config, family)
    if family.local_theta:
        near = write_one(config.local_rope_theta or config.rope_theta, None)
        content["rope_parameters"] = {FULL: write_one(config.rope_theta, config.rope_scaling), SLIDING: near}
    else:
        content["rope_parameters"] = write_one(config.rope_theta, config.rope_scaling)
    return content | {"dtype": config.param_dtype, "use_cache": True}


def _write_windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    kind = family.windows
    if kind == "none":
        return {}
    windows = config.windows or (0,) * config.layers
    width = max(windows) or None
    if kind in ("all", "used_by_all"):
        return {"sliding_window": width} | ({"use_sliding_window": width is not None} if kind == "used_by_all" else {})
    types = {"layer_types": [SLIDING if window else FULL for window in windows]}
    if kind != "used_by_last":
        return {"sliding_window": width, **types}
    last = next((i for i, window in enumerate(windows) if window), config.layers)
    return {"use_sliding_window": width is not None, "sliding_window": width, "max_window_layers": last, **types}


def _write_experts(config: ModelConfig, family: Family) -> dict[str, Any]:
    if family.experts == "none":
        return {}
    found: dict[str, Any] = {"num_experts_per_tok": config.experts_per_token, "output_router_logits": False}
    if family.experts == "mixtral":
        return {**found, "num_local_experts": config.experts, "intermediate_size": config.expert_hidden}
    return {
        **found,
        "num_experts": config.experts,
        "moe_intermediate_size": config.expert_hidden,
        "norm_topk_prob": config.expert_renormalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
    }


def _misfits(config: ModelConfig, content: Mapping[str, Any], family: Family) -> list[str]:
    """What reading `content` back would change in `config`, or transformers refuse."""
    if family.divided and config.width % config.heads:
        return [f"hidden_size: got {config.width}, allowed are multiples of the {config.heads} heads"]
    if not config.rope_theta:
        return ["rope_theta 0.0 (it rotates)"]
    try:
        back = from_fields(content, where="config.json")
    except ValueError as error:
        return [str(error)]
    ignored = {*HOW.split(), "family", "context"}
    if config.experts and not config.dense_layers:
        ignored.add("hidden")  # of no layer
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in ignored]
    pairs = {name: (getattr(config, name), getattr(back, name)) for name in names}
    return [f"{name} {ours!r} (would be {theirs!r})" for name, (ours, theirs) in pairs.items() if ours != theirs]
