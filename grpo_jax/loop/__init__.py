"""A run from its first line to its last: what it is set up from, its phases, what it leaves behind.

`course.run` is all of it and short enough to be copied; the other modules are what it calls.
"""

from grpo_jax.loop.course import run

__all__ = ["run"]
