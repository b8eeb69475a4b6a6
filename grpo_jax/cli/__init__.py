"""The command line: ``grpo-jax train FILE [flags]``, and the same flags for ``python FILE``.

``ablate FILE`` trains all variants of a file with several seeds and compares them.

``show RUN``, ``report RUN...``, ``eval RUN`` and ``sample RUN`` look at the folder of a run: its files, its newest
checkpoint.

Exit codes are those of `lifeline`: 0 done, 3 diverged, 4 configuration or usage, 5 data or reward, 70 hang, 75
preempted.
"""

from grpo_jax.cli.files import experiment_of, load
from grpo_jax.cli.program import ablate_for, main, main_for

__all__ = ["ablate_for", "experiment_of", "load", "main", "main_for"]
