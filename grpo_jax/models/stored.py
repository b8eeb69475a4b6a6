"""A folder of parameters alone in the format of our checkpoints, which `load` reads as it reads a published one."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import without_critic
from grpo_jax.models.published import to_fields
from grpo_jax.models.saving import appearing, check_new, special_tokens, tokenizer_files, write_json
from grpo_jax.models.source import CONFIG, PARAMS
from grpo_jax.models.table import abstract, axes, unstack
from grpo_jax.sharding import sharding_tree
from grpo_jax.types import Params


def store(
    path: str | os.PathLike, params: Params, config: ModelConfig, *, tokenizer_from: str | os.PathLike | None = None
) -> None:
    """Write `params`, of either layout and without a critic, and the config.json of `config`, into a new folder.

    The files of a tokenizer that `tokenizer_from` has are copied; it may have none.

    Raises ValueError as `models.save` does, OSError when writing fails; then nothing of the folder stays.
    """
    if config.lora is not None:
        raise ValueError(
            "config.lora: got adapters, allowed is None: add them to their matrices with models.merged first"
        )
    path = Path(path).absolute()
    content = to_fields(dataclasses.replace(config, critic=None, critic_detached=False))
    if jax.process_count() > 1:
        raise ValueError(
            f"processes: got {jax.process_count()}, allowed is 1: a folder of parameters is written by one"
        )
    check_new(path)
    copied = tokenizer_files(tokenizer_from)
    with appearing(path) as folder, ocp.StandardCheckpointer() as writer:
        writer.save(folder / PARAMS, unstack(without_critic(params)))
        writer.wait_until_finished()
        for file in copied:
            shutil.copyfile(file, folder / file.name)
        write_json(folder / CONFIG, content | special_tokens(tokenizer_from))


def is_stored(folder: Path) -> bool:
    """Whether a folder is one of `store`."""
    return (folder / PARAMS).is_dir() and (folder / CONFIG).is_file()


def restore(folder: Path, config: ModelConfig, mesh: Mesh | None) -> Params:
    """The parameters in a folder of `store`, with one entry a layer, in ``config.param_dtype``, laid out on `mesh`.

    Raises ValueError where the arrays are not those of `config` or cannot be read.
    """
    config = dataclasses.replace(config, critic=None, critic_detached=False, stacked=False)
    shapes = abstract(config)
    with ocp.StandardCheckpointer() as reader:
        try:
            found = reader.metadata(folder / PARAMS).item_metadata
            here = {_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found.tree)}
            wanted = {_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
            if here != wanted:
                wrong = sorted(name for name in here.keys() | wanted.keys() if here.get(name) != wanted.get(name))
                raise ValueError(f"its arrays differ from those of config.json in {', '.join(wrong[:10])}")
            return reader.restore(folder / PARAMS, _targets(shapes, config, mesh))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # storage raises whatever type the damage leads to
            what = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder}: got parameters that cannot be read ({what}): import them again") from error


def _targets(shapes: Params, config: ModelConfig, mesh: Mesh | None) -> Params:
    alone = SingleDeviceSharding(jax.local_devices()[0])
    layouts: Any = jax.tree.map(lambda _: alone, shapes) if mesh is None else sharding_tree(axes(config), shapes, mesh)
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), shapes, layouts)


def _path(path: tuple) -> str:
    return "/".join(str(part.key) for part in path)
