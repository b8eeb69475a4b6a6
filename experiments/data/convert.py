"""Write the published files of GSM8K or MATH as the JSONL that `grpo_jax.data.Jsonl` reads.

    python experiments/data/convert.py gsm8k train.jsonl gsm8k_train.jsonl
    python experiments/data/convert.py math-folder MATH/train math_train.jsonl
    python experiments/data/convert.py math-jsonl test.jsonl math500.jsonl

Every line says ``"match": "math"``, so that ``text_rewards(match="stated")`` compares its answer as mathematics. An
error names file and line, and then nothing is written.
"""

import argparse
import sys
from collections.abc import Sequence

from grpo_jax.data.published import FORMATS, convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert as the command line says; 0 where that was done, 5 where the data could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=sorted(FORMATS))
    parser.add_argument("source", help="the file, or the folder of MATH")
    parser.add_argument("target", help="the file to write")
    given = parser.parse_args(arguments)
    try:
        count = convert(given.format, given.source, given.target)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 5
    sys.stdout.write(f"{count} lines in {given.target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
