"""``train`` and ``ablate``: their flags, and what they do."""

import argparse
from pathlib import Path

from grpo_jax.cli.files import experiment_of, load, told_by_line
from grpo_jax.cli.parser import choice_flags, settings_flag
from grpo_jax.lifeline import BadData, Exit, page
from grpo_jax.origin import Origin


def train_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``train``, which begins or continues a run."""
    choice_flags(parser)
    parser.add_argument(
        "--run-dir", metavar="DIR", help="folder of the run; default runs/ and the name of the experiment"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="move an existing run aside and start anew; default: continue it"
    )
    parser.add_argument(
        "--accept-code-change",
        action="store_true",
        help="continue although a function of the experiment has changed, and write that down; default: refuse",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, sizes, memory and scored examples; default: train",
    )
    parser.set_defaults(act=_train)


def ablate_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``ablate``, which trains several variants with several seeds."""
    parser.add_argument("--variants", metavar="A,B", help="some of the VARIANTS, or EXPERIMENT; default all VARIANTS")
    parser.add_argument("--seeds", metavar="0,1,2", help="default the SEEDS of the file, else that of the experiments")
    settings_flag(parser)
    parser.add_argument("--dir", metavar="DIR", help="folder of the ablation; default runs/FILE-ablation")
    parser.add_argument("--rollouts", metavar="FILE", help="the first variant records, the others learn from the same")
    parser.add_argument("--fresh", action="store_true", help="move an existing ablation aside and start anew")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how they differ; train nothing")
    parser.set_defaults(act=_ablate)


def _train(parsed: argparse.Namespace) -> int:
    # Imported here: a usage error needs no JAX.
    from grpo_jax.compiled import check_backend, keep_programs
    from grpo_jax.loop import run
    from grpo_jax.plan import preview

    keep_programs()
    check_backend()
    experiment = experiment_of(parsed.file, parsed.variant, parsed.settings)
    if parsed.dry_run:
        found = preview(experiment)
        page(found.page)
        if found.trouble is not None:
            raise BadData(found.trouble)
        return int(Exit.DONE)
    origin = Origin(str(Path(parsed.file).resolve()), parsed.variant, tuple(parsed.settings))
    how = {"run_dir": parsed.run_dir, "fresh": parsed.fresh, "accept_code_change": parsed.accept_code_change}
    run(experiment, **how, origin=origin)
    return int(Exit.DONE)


def _ablate(parsed: argparse.Namespace) -> int:
    from grpo_jax.ablation import command
    from grpo_jax.compiled import keep_programs

    keep_programs()
    file = Path(parsed.file)
    chosen = {"variants": parsed.variants, "seeds": parsed.seeds, "rollouts": parsed.rollouts}
    module = load(file)
    with told_by_line(file):
        ablation = command.planned(file, module, assignments=parsed.settings, **chosen)
    folder = Path(parsed.dir or Path("runs") / f"{file.stem}-ablation")
    if parsed.dry_run:
        page(command.preview(ablation, folder))
        return int(Exit.DONE)
    return command.ablate(ablation, folder, fresh=parsed.fresh, show=page)
