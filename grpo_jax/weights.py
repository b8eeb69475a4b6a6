"""A run that begins with published weights: where they are, that they are those of its model, and that they stay so."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.models.published import HOW
from grpo_jax.models.source import locate
from grpo_jax.models.stored import is_stored
from grpo_jax.types import Params


@dataclass(frozen=True)
class Weights:
    """Where the initial parameters of a run come from, instead of its seed."""

    path: str
    """A folder with config.json and safetensors, or ``owner/name`` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit there; None for a folder, and for the default branch."""
    fingerprint: str = ""
    """What `models.fingerprint` has to say of the files; "": what it says when the run begins, and then the same."""

    @property
    def folder(self) -> Path:
        """The folder, fetched from the Hub where it has to be. Raises ValueError where there is none."""
        return locate(self.path, revision=self.revision)


def fingerprint(weights: Weights) -> str:
    """What `models.fingerprint` says of the files. Raises ValueError where `weights` states another."""
    folder = weights.folder
    found = _fingerprint_of_ours(folder) if is_stored(folder) else models.fingerprint(folder)
    if weights.fingerprint not in ("", found):
        raise ValueError(
            f"weights.fingerprint: got {weights.fingerprint}, but the files in {weights.folder} have {found}; allowed"
            ' are files with the fingerprint that is stated: get these, or leave it "" to take what is there'
        )
    return found


def _fingerprint_of_ours(folder: Path, *, block: int = 4096, blocks: int = 256) -> str:
    """That of a folder of `models.store`: of every file the name, the length and blocks at even distances."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)}\0{size}\0".encode())
        with file.open("rb") as opened:
            for offset in sorted({max(size - block, 0) * i // (blocks - 1) for i in range(blocks)}):
                opened.seek(offset)
                digest.update(opened.read(block))
    return digest.hexdigest()


def check(weights: Weights, model: Any) -> None:
    """Raise a ValueError unless `weights` are those of `model`, naming every field of it that differs.

    How the model is computed and trained is the experiment's choice; what it is stands in the config.json beside the
    weights.
    """
    if not isinstance(model, ModelConfig):
        raise ValueError(
            f"weights: got {weights.path} for a {type(model).__name__}, allowed with such weights is a ModelConfig:"
            " make the model with models.read_config(path), or set weights to None"
        )
    theirs = models.read_config(weights.folder, **_how(model))
    lines = [
        f"  model.{field.name}: got {getattr(model, field.name)!r}, {weights.folder / 'config.json'} says"
        f" {getattr(theirs, field.name)!r}"
        for field in fields(ModelConfig)
        if getattr(model, field.name) != getattr(theirs, field.name)
    ]
    if lines:
        remedy = "  allowed is the model of these weights: make it with models.read_config(path)"
        raise ValueError("\n".join([f"weights: {weights.path} holds another model:", *lines, remedy]))
    fingerprint(weights)


def load(weights: Weights, model: ModelConfig, mesh: Mesh | None) -> Params:
    """The parameters of `model` from `weights`, on the mesh as training lays them out."""
    return models.load(weights.path, revision=weights.revision, mesh=mesh, **_how(model))[0]


def _how(model: ModelConfig) -> dict[str, Any]:
    """The fields of `model` that its weights leave open."""
    return {field.name: getattr(model, field.name) for field in fields(ModelConfig) if field.name in HOW.split()}
