"""``python -m grpo_jax`` and ``grpo-jax``: the command line, which can be stopped from its first moment on."""

import signal
import sys
from types import FrameType
from typing import NoReturn


def _preempted(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    print("stopped: SIGTERM before anything was begun; run the same command again", file=sys.stderr)
    sys.exit(75)


def main() -> int:
    """Run the command line of this process; loading it takes long enough for somebody to think better of it."""
    try:
        signal.signal(signal.SIGTERM, _preempted)
        from grpo_jax import cli

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return cli.main()
    except KeyboardInterrupt:
        print("interrupted before anything was begun", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
