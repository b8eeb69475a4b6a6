"""Weights in and out: a run's checkpoint as a folder that other tools read, and a published folder as one of ours."""

import os
from pathlib import Path
from typing import Any

from grpo_jax import models
from grpo_jax.experiment import Experiment
from grpo_jax.folder import visit
from grpo_jax.models import ModelConfig
from grpo_jax.models.source import locate
from grpo_jax.revisit import NEWEST, restore


def export(
    run: Path,
    experiment: Experiment,
    *,
    out: Path,
    checkpoint: str = NEWEST,
    dtype: str | None = None,
    tokenizer_from: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Write the parameters of a checkpoint of `run` to the new folder `out` as `models.save` does.

    Adapters are added to their matrices, which are joined where GRPO leaves them as they are; a critic is left out.

    Args:
      run: the folder of a run; it is only read.
      experiment: the one of that run.
      out: a new or empty folder.
      checkpoint: "newest", "best", a GRPO step, or "warm_start/STEP".
      dtype: of the weights written: float32, float16 or bfloat16; None for that of the parameters.
      tokenizer_from: the folder of the tokenizer that is copied beside them; None for none.

    Returns ``{"phase", "step", "architecture", "folder"}``. Raises ValueError for a checkpoint that is not there, an
    experiment that is not that of the run, and a model that no published architecture expresses.
    """
    model = models.decoder_of(experiment.model, what="export")
    with visit(run, experiment) as kept:
        restored = restore(kept, experiment, checkpoint)
    params, config = models.merged(models.without_critic(restored.policy), model)
    models.save(out, params, config, tokenizer_from=tokenizer_from, dtype=dtype)
    written = models.read_config(out)
    at = {key: restored.meta[key] for key in ("phase", "step")}
    return {**at, "architecture": written.family, "folder": str(out)}


def import_weights(
    source: str | os.PathLike, out: Path, *, revision: str | None = None, dtype: str | None = None
) -> ModelConfig:
    """Write the weights of a published checkpoint to the new folder `out`, in the format of our checkpoints.

    `models.load` reads that folder as it reads the published one, on any mesh.

    Args:
      source: a folder, or ``owner/name`` on the Hub.
      out: a new or empty folder.
      revision: branch, tag or commit on the Hub.
      dtype: of the parameters; None for the one that the source names.

    Returns the config of the model. Raises ValueError as `models.load` and `models.save` do.
    """
    changes: dict[str, Any] = {} if dtype is None else {"param_dtype": dtype}
    folder = locate(source, revision=revision)
    params, config = models.load(folder, **changes)
    models.store(out, params, config, tokenizer_from=folder)
    return config
