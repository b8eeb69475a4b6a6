from typing import Any

import jax
import pytest

from grpo_jax.models.kinds import KINDS
from grpo_jax.sampling import generate
from grpo_jax.sampling.samplers import SAMPLERS

WRONG: Any = "gpt"


def test_every_kind_of_model_has_a_sampler():
    assert SAMPLERS.keys() == KINDS.keys()
    with pytest.raises(ValueError, match="of type str, allowed are ModelConfig, OwnModel"):
        generate({}, WRONG, WRONG, WRONG, jax.random.key(0), group_size=1)
