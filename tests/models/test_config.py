"""What describes no model is refused, with the remedy."""

import dataclasses

import pytest

from grpo_jax.models import ModelConfig

GOOD = ModelConfig(vocab=7, width=8, layers=1, heads=4, kv_heads=2, head_width=2, hidden=16)
BAD = {
    "no layer": ({"layers": 0}, "layers is 0"),
    "unknown activation": ({"activation": "swish"}, "allowed are silu, gelu, gelu_exact, relu"),
    "kv heads that do not divide the heads": ({"kv_heads": 3}, "kv_heads must divide heads: 1, 2, 4"),
    "odd heads with rotation": ({"head_width": 3, "rope_theta": 100.0}, "take 4, or rope_theta=0"),
    "an integer dtype": ({"compute_dtype": "int32"}, "compute_dtype is 'int32'"),
    "no dtype": ({"param_dtype": "float31"}, "param_dtype is 'float31'"),
    "negative positions": ({"positions": -1}, "positions is -1"),
    "a window for another number of layers": ({"windows": (4, 0)}, "allowed are .. or 1 numbers of tokens"),
    "local rotations without windows": ({"rope_theta": 10.0, "local_rope_theta": 5.0}, "local_rope_theta is 5.0"),
    "more experts a token than there are": (
        {"gated": True, "experts": 2, "experts_per_token": 3, "expert_hidden": 4},
        "allowed are 1 to 2 a token",
    ),
    "sizes of experts without experts": ({"expert_hidden": 4}, "allowed without experts are 0, 0"),
    "a mixture of ordinary layers alone": (
        {"gated": True, "experts": 2, "experts_per_token": 1, "expert_hidden": 4, "dense_layers": (0,)},
        "some, not all, of the layers 0 to 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_describes_no_model_is_refused(name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **change)


def test_equal_configs_hash_equally_and_an_unknown_field_is_an_error():
    assert hash(GOOD) == hash(dataclasses.replace(GOOD))
    assert dataclasses.replace(GOOD, stacked=True) != GOOD
    with pytest.raises(TypeError, match="depth"):
        dataclasses.replace(GOOD, depth=1)
