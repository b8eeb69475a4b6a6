"""``python -m grpo_jax``: the command line."""

import sys

from grpo_jax.cli import main

sys.exit(main())
