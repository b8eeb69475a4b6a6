"""Checkpoints that are whole or not there: saved in the background, verified on the way back.

A checkpoint is a folder ``<index>`` with the items ``params``, ``train`` (the rest of the train state) and ``meta``
(JSON): what the caller wants to know on resuming, who wrote it, and two 32-bit sums per array. Storage alone notices
neither a flipped bit nor a lost chunk, which reads as zeros; the sums do, and since they are exact modulo 2^32 they
are the same whichever mesh the arrays live on. What fails verification is renamed ``<index>.bad`` and the next older
checkpoint is used; when checkpoints exist and none is good the run stops instead of starting from scratch.
"""

from grpo_jax.checkpoint.digests import leaf_digests, state_digest
from grpo_jax.checkpoint.identity import identity_difference
from grpo_jax.checkpoint.retention import ranked
from grpo_jax.checkpoint.store import CheckpointError, Checkpoints, Restored, abstract

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Restored",
    "abstract",
    "identity_difference",
    "leaf_digests",
    "ranked",
    "state_digest",
]
