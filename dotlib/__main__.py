"""The command line, `dotlib` or `python -m dotlib`; `dotlib --help` lists the commands."""

import argparse
import sys
from pathlib import Path

from . import commands as do
from . import commands_runs as runs
from .arms import CANDIDATES, SOBOL, STUDIES
from .config import PROFILES
from .workers import Terminated, end_when_terminated

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, or ended by SIGTERM; 1 failed, 2 bad input (one line on standard error)."""
    arguments = _parser().parse_args(argv)
    end_when_terminated()
    try:
        return arguments.run(arguments) or 0
    except ValueError as error:
        print(f"dotlib: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Terminated:
        print("dotlib: ended as asked; the same command continues from the last checkpoints", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("dotlib: interrupted; the same command continues from the last checkpoints", file=sys.stderr)
        return EXIT_FAILED
    except (RuntimeError, ArithmeticError, OSError, MemoryError) as error:
        print(f"dotlib: {str(error) or 'out of memory'}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dotlib", description="Near-infrared diffuse optical tomography, stage 1.")
    subparsers = parser.add_subparsers(metavar="command", required=True)

    def add(name: str, run, text: str, example: str, sized: bool = True) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name, help=text, description=text, epilog=f"example: dotlib {name} {example}",
        )  # fmt: skip
        command.set_defaults(run=run)
        if sized:
            command.add_argument("--profile", default="quick", help=f"one of {', '.join(PROFILES)}; quick by default")
        return command

    command = add("simulate", do.simulate, "Simulate a dataset file, or continue it.", "--profile smoke --workers 2")
    for name, kind, text in (
        ("family", str, "of the phantoms"), ("phantoms", int, "their number"), ("seed", int, "of the phantoms"),
        ("grid", int, "voxels a side of the forward model"), ("out", Path, "the file; its place in data/ by default"),
        ("workers", int, "processes; one for each core by default"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", type=kind, help=text + ("" if ";" in text else "; the profile's by default"))
    command.add_argument("--precise", action="store_true", default=None, help="fp64 outer loop")
    command.add_argument("--on", choices=("here", "slurm"), default="here", help="on this machine, or shards by jobs")
    command = add("check", do.check, "Verify every record of a dataset file.", "data/own.h5", sized=False)
    command.add_argument("file", type=Path, help="a file of `dotlib simulate`, or of the same schema")
    for name, run, text in (
        ("study", do.study, "Compute the missing runs of a study (arms x paired seeds)."),
        ("status", do.status, "Show where each run of a study stands."),
    ):
        command = add(name, run, text, "4.2-baseline --profile smoke --seeds 2")
        command.add_argument("study", help=f"one of {', '.join(STUDIES)}")
        command.add_argument("--seeds", type=int, default=0, help="paired seeds; 0, the default: the study's own")
    command = subparsers.choices["study"]
    command.add_argument("--on", choices=("here", "slurm", "nowhere"), default="here",
                         help="compute on this machine, by jobs on a cluster, or take what is there")  # fmt: skip
    command.add_argument("--per-gpu", type=int, default=1, help="runs that share a GPU of this machine; 1 by default")
    command.add_argument("--record", action="store_true", help="write its tables to results/")
    command = add("runs", runs.ls, "List, show, remove, record or take over finished runs.", "ls", False)
    verbs = command.add_subparsers(metavar="ls | show | rm | export | merge", required=True)
    for name, run, text in (
        ("ls", runs.ls, "List the runs of the store, and what they take of the disk."),
        ("show", runs.show, "Show a run: configuration, where it stands, what it ended with."),
        ("rm", runs.rm, "Remove runs from the disk."),
        ("export", runs.export, "Write the tables of studies to results/, from the runs that are finished."),
        ("merge", runs.merge, "Take over the finished runs of other stores: results and weights alone."),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        verb.add_argument("--store", type=Path, help="the project's runs/ by default")
        if name == "ls":
            verb.add_argument("--verify", action="store_true", help="read every checkpoint with its digest")
        elif name == "export":
            verb.add_argument("names", nargs="*", metavar="study", help="all that have a finished run by default")
            verb.add_argument("--profile", default="quick", help=f"one of {', '.join(PROFILES)}; quick by default")
        else:
            what = ("store", "folders") if name == "merge" else ("run", "the begin or the end of a run's name")
            verb.add_argument("names", nargs="+", metavar=what[0], help=what[1])
    command = add(
        "sweep", do.sweep, "Tune candidates: their trials, as many for each.", "muon adamw-cosine --profile smoke"
    )
    command.add_argument("candidates", nargs="+", metavar="candidate", help=f"all, or of {', '.join(CANDIDATES)}")
    command.add_argument("--trials", type=int, default=len(SOBOL), help=f"of each; {len(SOBOL)} by default")
    command.add_argument("--sampler", choices=("sobol", "tpe"), default="sobol", help="TPE begins with Sobol's points")
    command.add_argument("--pruner", choices=("none", "median"), default="none",
                         help="give up a trial that is worse than the median, from half of its epochs on")  # fmt: skip
    command.add_argument("--on", choices=("here", "slurm"), default="here", help="on this machine, or by jobs")
    command.add_argument("--per-gpu", type=int, default=1, help="trials that share a GPU of this machine; 1 by default")
    command = add("judge", do.judge, "Judge finished runs on other phantoms.", "--task reconstruct --record")
    command.add_argument("--record", action="store_true", help="write the judgements to results/")
    command.add_argument("--task", choices=("autoencode", "reconstruct"), default="autoencode",
                         help="the runs of section 4.5, or of 4.6 beside the classical methods")  # fmt: skip
    command.add_argument(
        "--sets", nargs="+", metavar="SET", help="of task reconstruct: only these, and the test phantoms"
    )
    command = add("tune", do.tune, "Tune the classical reconstructions by validation.", "--profile quick --record")
    command.add_argument("--record", action="store_true", help="write the settings to results/")
    command = add("reconstruct", do.reconstruct, "Reconstruct one recording.", "mine.snirf --wavelength 850", False)
    command.add_argument("file", type=Path, help="a SNIRF file (.snirf), or a dataset file")
    command.add_argument(
        "--model", type=Path, nargs="+", help="checkpoints; of several seeds: with an sd; those of runs/ by default"
    )
    command.add_argument("--phantom", type=int, help="of a dataset file; 0 by default")
    command.add_argument("--every", action="store_true", help="use all pairs, not as many as in training")
    command.add_argument("--grid", type=int, help="refuse a network that answers on another grid")
    for name, text in (
        ("wavelength", "nm"), ("frequency", "modulation, Hz"), ("saturation", "amplitude above it: pairs left out"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", type=float, help=f"of a SNIRF file: {text}")
    command.add_argument("--radius", type=float, help="of tissue whose surface is unknown, mm; fitted by default")
    command.add_argument("--unit", help="of a SNIRF file's positions, in place of what it says: mm, cm or m")
    command.add_argument("--out", type=Path, help="name of what is written, without suffix; beside the file by default")
    command = add("snirf", do.snirf, "Write one phantom's readings as SNIRF.", "data/F.h5 --phantom 3", False)
    command.add_argument("file", type=Path, help="a dataset file")
    command.add_argument("--phantom", type=int, default=0, help="0 by default")
    command.add_argument(
        "--wavelength", type=float, default=850, help="which a dataset does not have: nm, 850 by default"
    )
    command.add_argument("--out", type=Path, help="a .snirf file; beside the dataset by default")
    command = add("workbook", do.workbook, "Run all notebooks and write the HTML book.", "--profile smoke -p seeds 2")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a notebook's parameter, as papermill takes it")  # fmt: skip
    command.add_argument("--notebook", type=Path, help="only this notebook")
    add("figures", do.figures, "Render figures/ from results/ by the notebooks that can.", "", False)
    command = add("thesis", do.thesis, "Compile a document of all figures and tables.", "--draft quick", False)
    command.add_argument("--draft", metavar="PROFILE", nargs="?", const="quick",
                         help="accept marked figures; what figures/ lacks is that profile's")  # fmt: skip
    command = add("bench", do.bench, "Time a part against a baseline of the same call.", "training --profile quick")
    command.add_argument("part", help="phantoms, training, forward, lift, overhead, store or sharing")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
