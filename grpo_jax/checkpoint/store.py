"""Saving in the background, verifying on the way back, and putting aside what was damaged."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from grpo_jax.checkpoint.digests import layout, leaf_digests, sha256
from grpo_jax.checkpoint.identity import check_identity, checked_meta, identity_difference
from grpo_jax.checkpoint.quiet import essence, quiet_storage
from grpo_jax.checkpoint.retention import Retention
from grpo_jax.lifeline import DataError, say
from grpo_jax.types import TrainState

ITEMS = ("params", "train", "meta")
_STEP = re.compile(r"\d+")
_QUARANTINED = re.compile(r"\d+\.bad(\.\d+)?")
_COMMIT = "commit_success.txt"


class CheckpointError(DataError):
    """A checkpoint could not be written, or none of those that exist can be trusted."""


class _Damaged(Exception):
    """What is on disk is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found."""

    index: int
    state: TrainState
    meta: dict


@dataclasses.dataclass(frozen=True)
class _Found:
    index: int
    items: dict[str, Any]
    record: dict


# The train state as items


def _split(state: TrainState) -> dict[str, Any]:
    rest = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "params"}
    return {"params": state.params, "train": {name: part for name, part in rest.items() if part is not None}}


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays: the target for `Checkpoints.restore`.

    An array that was never placed (a counter made by ``jnp.int32(0)``) goes wherever it is used. Restored arrays are
    all placed, so it is put on every device of the mesh that the tree is on, if it is on one.
    """
    meshes = [x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(getattr(x, "sharding", None), NamedSharding)]
    free = NamedSharding(meshes[0], PartitionSpec()) if meshes else SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(functools.partial(_target, free=free), tree)


def _target(x: Any, *, free: Sharding) -> jax.ShapeDtypeStruct:
    placed = getattr(x, "sharding", None) is not None and getattr(x, "committed", True)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if placed else free)


def _everywhere(ok: bool) -> bool:
    """True where every process says so; a barrier too."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: made when missing.
      identity: what a checkpoint has to agree in to be resumed from: digest of the configuration, versions. JSON.
      keep_last: newest checkpoints kept, at least 1.
      keep_every: checkpoints whose index is a multiple are kept for ever; None for none.
      warn: called with a sentence for every checkpoint put aside, or passed over where nothing may be written.
      read_only: only look: nothing is written, renamed or deleted, and `save` is refused.

    Every process of a run makes the same calls.
    """

    def __init__(
        self,
        directory: Path,
        *,
        identity: dict,
        keep_last: int = 2,
        keep_every: int | None = None,
        warn: Callable[[str], object] = say,
        read_only: bool = False,
    ):
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep_last and keep_every are counts from 1, got {keep_last} and {keep_every}.")
        self._directory = Path(directory).absolute()
        self._identity = checked_meta(identity)
        self._warn, self._read_only = warn, read_only
        self._newest: int | None = None
        self._retention = Retention(last=keep_last, every=keep_every)
        self._opened: ocp.CheckpointManager | None = None
        self._reader: ocp.Checkpointer | None = None
        quiet_storage()

    @property
    def directory(self) -> Path:
        """Where they are."""
        return self._directory

    @property
    def _manager(self) -> ocp.CheckpointManager:
        # Opened late: it reads every folder, so those that are empty or uncommitted have to be put aside before.
        if self._opened is None:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._retention, enable_async_checkpointing=True, cleanup_tmp_directories=True
            )
            self._opened = ocp.CheckpointManager(self._directory, options=options, item_names=ITEMS)
        return self._opened

    def save(
        self, index: int, state: TrainState, meta: dict, *, best: Collection[int] = (), passing: bool = False
    ) -> None:
        """Saves in the background; on return the arrays have been copied off the device and may be donated.

        Saving the newest index once more does nothing: it is the same state. `best` are the indices that stay beside
        the last ones, from now on; a `passing` checkpoint is one that `Retention` lets go with the next. Older ones are
        deleted when this one is committed.

        Raises:
          CheckpointError: this save, or the one before it in the background, failed.
          ValueError: `index` is older than the newest checkpoint, `meta` is not JSON, or they were opened to be read.
        """
        if self._read_only:
            raise ValueError(f"Checkpoint {index} cannot be saved: {self._directory} was opened to be read.")
        self.wait()
        if index == self._newest:
            return
        if self._newest is not None and index < self._newest:
            raise ValueError(f"Checkpoint {index} is older than the newest, {self._newest}: indices only grow.")
        items = _split(state)
        self._retention.best = frozenset(best)
        if passing:
            self._retention.passing |= {index}
        record = {
            "identity": self._identity,
            "retention": {"best": sorted(best), "passing": sorted(self._retention.passing)},
            "digests": leaf_digests(items),
            "layout": layout(items),
            "meta": checked_meta(meta),
        }
        record = json.loads(json.dumps(record))
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(items["params"]),
            train=ocp.args.StandardSave(items["train"]),
            meta=ocp.args.JsonSave({**record, "sha256": sha256(record)}),
        )
        try:
            self._manager.save(index, args=args, force=True)
        except Exception as error:
            raise self._failed(error, index) from error
        self._newest = index

    def poll(self) -> None:
        """Raises CheckpointError if the save in the background has failed; never waits for one that has not ended."""
        if self._opened is not None and not self._opened.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being saved any more; raises CheckpointError if the save failed."""
        if self._opened is None:
            return
        try:
            self._opened.wait_until_finished()
            self._opened.check_for_errors()
        except Exception as error:
            raise self._failed(error, self._newest) from error

    def close(self) -> None:
        """Waits, then frees the threads. Raises CheckpointError as `wait` does, after freeing them."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._opened is None:
            return
        try:
            self.wait()
        finally:
            opened, self._opened = self._opened, None
            try:
                opened.close()
            except Exception as error:
                raise self._failed(error, self._newest) from error

    def _failed(self, error: BaseException, index: int | None) -> CheckpointError:
        self._newest = None
        return CheckpointError(
            f"Checkpoint {index} could not be saved in {self._directory}: {essence(error)}. Older checkpoints are "
            "untouched. Free space or make the folder writable, then run the same command again."
        )

    def restore(
        self, *abstract_states: TrainState, accept: Collection[str] = (), index: int | None = None
    ) -> Restored | None:
        """The newest checkpoint that proves to be what was saved; None where nothing was ever saved.

        Args:
          *abstract_states: `abstract` of a state: shapes, dtypes and shardings wanted. The mesh may be another one. Of
            several, for phases with optimisers of their own, the first that the checkpoint has the layout of counts.
          accept: names in the identity that may differ.
          index: this one and no other; None for the newest good one, behind which saving goes on.

        Raises:
          ValueError: the checkpoint is whole and belongs to another identity or to other shapes or dtypes.
          CheckpointError: checkpoints exist and none is good, that of `index` is not, or the folder cannot be read.
        """
        targets = [_split(abstract(state)) for state in abstract_states]
        found = self._newest_good(targets, accept) if index is None else self._one(index, targets, accept)
        if found is None:
            return None
        items = found.items
        if index is None:
            self._newest = found.index
            self._tidy(found)
        return Restored(found.index, TrainState(params=items["params"], **items["train"]), found.record["meta"])

    def notes(self) -> dict[int, dict]:
        """Index -> the `meta` of every checkpoint whose description is intact, newest first; no array is read."""
        found = {}
        for index in self._steps()[0]:
            if not self._missing(index):
                try:
                    found[index] = self._record(index)["meta"]
                except _Damaged:
                    continue
        return found

    def _one(self, index: int, targets: Sequence[dict], accept: Collection[str] | None) -> "_Found":
        try:
            missing = self._missing(index)
            if not _everywhere(not missing):
                raise _Damaged(missing or "another process does not have all of it")
            return self._good(index, targets, accept)
        except _Damaged as error:
            raise CheckpointError(
                f"Checkpoint {index} in {self._directory} is damaged: {error}. Choose another one."
            ) from None

    def _tidy(self, found: "_Found") -> None:
        """Delete what the save of the checkpoint that was restored had no time to delete: that one is verified now."""
        kept = found.record.get("retention", {"best": (), "passing": ()})
        self._retention.best, self._retention.passing = frozenset(kept["best"]), frozenset(kept["passing"])
        steps = [] if self._read_only else [index for index in self._steps()[0] if index <= found.index]
        for index in sorted(set(steps) - self._retention.kept(steps)):
            try:
                self._manager.delete(index)
            except OSError as error:
                raise CheckpointError(f"Checkpoint {index} in {self._directory} cannot be deleted: {error}.") from error

    def restore_params(self, abstract_params: Any) -> Any | None:
        """The parameters alone of the newest good checkpoint, verified, whoever wrote it; None as in `restore`."""
        found = self._newest_good([{"params": abstract(abstract_params)}], None)
        return None if found is None else found.items["params"]

    def _steps(self) -> tuple[list[int], bool]:
        """Indices of step folders, newest first, and whether any has been put aside."""
        try:
            names = [entry.name for entry in os.scandir(self._directory) if entry.is_dir()]
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise CheckpointError(f"Checkpoints in {self._directory} cannot be read: {error}.") from error
        steps = sorted((int(name) for name in names if _STEP.fullmatch(name)), reverse=True)
        return steps, any(_QUARANTINED.fullmatch(name) for name in names)

    def _newest_good(self, targets: Sequence[dict], accept: Collection[str] | None) -> "_Found | None":
        steps, bad = self._steps()
        whole = []
        for index in steps:
            missing = self._missing(index)
            if _everywhere(not missing):
                whole.append(index)
            else:
                self._put_aside(index, missing)
        for index in whole:
            try:
                return self._good(index, targets, accept)
            except _Damaged as error:
                damage = str(error)
            self._put_aside(index, damage)
        if steps or bad:
            raise CheckpointError(
                f"{self._directory} holds checkpoints and none of them is good; a silent start from scratch would hide "
                "that. Rename one back from .bad if you trust it, or start afresh in another run folder."
            )
        return None

    def _missing(self, index: int) -> str:
        """What of a checkpoint is not there, in words; empty where it was completed."""
        folder = self._directory / str(index)
        needed = [folder / _COMMIT, *(folder / item / _COMMIT for item in ITEMS)]
        missing = [str(path.relative_to(folder)) for path in needed if not path.is_file()]
        return f"{', '.join(missing)} missing: never completed" if missing else ""

    def _good(self, index: int, targets: Sequence[dict], accept: Collection[str] | None) -> "_Found":
        record = self._record(index)
        if accept is not None:
            check_identity(index, record["identity"], self._identity, accept)
        target = self._target(index, record["layout"], targets)
        return _Found(index, self._verified(index, record, target), record)

    def _record(self, index: int) -> dict:
        record = self._read(index, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        content = {key: value for key, value in record.items() if key != "sha256"} if isinstance(record, dict) else {}
        if not _everywhere(bool(content) and record.get("sha256") == sha256(content)):
            raise _Damaged("its description was altered")
        return content

    def _read(self, index: int, args: Any) -> Any:
        result, damage = None, ""
        try:
            if self._reader is None:
                self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(*ITEMS))
            result = self._reader.restore(self._directory / str(index), args=args)
        except (PermissionError, MemoryError) as error:
            raise CheckpointError(f"Checkpoint {index} in {self._directory} cannot be read: {error}.") from error
        except Exception as error:  # storage raises whatever type the damage leads to
            damage = f"it cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not _everywhere(not damage):
            raise _Damaged(damage or "another process cannot read it")
        return result

    def _target(self, index: int, saved: Mapping[str, str], targets: Sequence[dict]) -> dict:
        """The first of `targets` laid out as what was saved.

        A whole checkpoint of another state is the caller's mistake, not damage: it stays where it is.
        """
        saved = {name: value for name, value in saved.items() if name.split("/")[0] in targets[0]}
        for target in targets:
            if saved == layout(target):
                return target
        words = identity_difference(saved, layout(targets[0])).split("; ")
        more = f"; and {len(words) - 4} more" if len(words) > 4 else ""
        raise ValueError(
            f"Checkpoint {index} holds another state: {'; '.join(words[:4])}{more}. "
            "Use the model and optimiser it was written with, or another run folder."
        )

    def _verified(self, index: int, record: dict, target: dict) -> dict:
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in target.items()})
        read = self._read(index, args)
        items = {item: read[item] for item in target}
        if layout(items) != layout(target):
            raise _Damaged("its arrays have other names, shapes or dtypes than were saved")
        found = leaf_digests(items)
        wrong = [name for name, pair in found.items() if list(pair) != record["digests"][name]]
        if not _everywhere(not wrong):
            raise _Damaged(f"{len(wrong)} of {len(found)} arrays differ from what was saved, {', '.join(wrong[:3])}")
        # Containers as in the target, whatever types storage made of them.
        return jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(items))

    def _put_aside(self, index: int, why: str) -> None:
        if self._read_only:
            self._warn(f"Checkpoint {index} is damaged ({why}); using the next older one.")
            return
        folder = self._directory / str(index)
        if jax.process_index() == 0:
            bad = self._directory / f"{index}.bad"
            count = 1
            while bad.exists():
                count += 1
                bad = self._directory / f"{index}.bad.{count}"
            try:
                os.rename(folder, bad)
            except OSError as error:
                raise CheckpointError(f"Damaged checkpoint {folder} ({why}) cannot be put aside: {error}.") from error
            self._warn(f"Checkpoint {index} is damaged ({why}); put aside as {bad.name}, using the next older one.")
        _everywhere(True)
        if self._opened is not None:
            self._opened.reload()
