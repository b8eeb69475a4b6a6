"""``export`` and ``import``: their flags, and what they do with weights that other tools read."""

import argparse
from pathlib import Path

from grpo_jax.cli.looking import of_run, run_flags
from grpo_jax.lifeline import Exit, page

DTYPES = ("float32", "float16", "bfloat16")


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``export``, which writes a checkpoint of a run as a folder that transformers loads."""
    run_flags(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder to write; no default")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default that of the parameters")
    parser.add_argument(
        "--tokenizer-from",
        metavar="DIR",
        help="folder whose tokenizer is copied beside them; default the tokenizer of the run, where it has a folder",
    )
    parser.set_defaults(act=_export)


def import_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``import``, which writes published weights as a folder in the format of our checkpoints."""
    parser.add_argument("source", metavar="FOLDER", help="published weights, or owner/name on the Hub")
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder to write; no default")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub; default its own")
    parser.add_argument("--dtype", choices=DTYPES, help="of the parameters; default that of the weights")
    parser.set_defaults(act=_import)


def _export(parsed: argparse.Namespace) -> int:
    experiment = of_run(parsed)
    from grpo_jax.exchange import export

    tokenizer = parsed.tokenizer_from or getattr(experiment.data.tokenizer, "path", None)
    how = {"checkpoint": parsed.checkpoint, "dtype": parsed.dtype, "tokenizer_from": tokenizer}
    found = export(Path(parsed.run), experiment, out=Path(parsed.out), **how)
    page(f"{found['architecture']} of {found['phase']} step {found['step']} in {found['folder']}\n")
    return int(Exit.DONE)


def _import(parsed: argparse.Namespace) -> int:
    from grpo_jax.exchange import import_weights

    config = import_weights(parsed.source, Path(parsed.out), revision=parsed.revision, dtype=parsed.dtype)
    page(f"{config.family} in {parsed.out}, {config.param_dtype}\n")
    return int(Exit.DONE)
