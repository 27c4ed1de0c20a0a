"""The command line, `dotlib` or `python -m dotlib`; `dotlib --help` lists the commands."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from .arms import STUDIES
from .config import PROFILES, ConfigError, Data, Measurements, named, profile, root, validate

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed, 2 bad input (one line on standard error)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except ValueError as error:
        print(f"dotlib: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("dotlib: interrupted; the same command continues from the last checkpoints", file=sys.stderr)
        return EXIT_FAILED
    except (RuntimeError, ArithmeticError, OSError) as error:
        print(f"dotlib: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dotlib", description="Near-infrared diffuse optical tomography, stage 1.")
    commands = parser.add_subparsers(metavar="command", required=True)

    def add(name: str, run, text: str, example: str, sized: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=f"example: dotlib {name} {example}",
        )  # fmt: skip
        command.set_defaults(run=run)
        if sized:
            command.add_argument("--profile", default="quick", help=f"one of {', '.join(PROFILES)}; quick by default")
        return command

    command = add("simulate", _simulate, "Simulate a dataset file, or continue it.", "--profile smoke --workers 2")
    for name, kind, text in (
        ("family", str, "of the phantoms"), ("phantoms", int, "their number"), ("seed", int, "of the phantoms"),
        ("grid", int, "voxels a side of the forward model"), ("out", Path, "the file; its place in data/ by default"),
        ("workers", int, "processes; one for each core by default"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", type=kind, help=text + ("" if ";" in text else "; the profile's by default"))
    command.add_argument("--precise", action="store_true", default=None, help="fp64 outer loop")
    command = add("check", _check, "Verify every record of a dataset file.", "data/own.h5", sized=False)
    command.add_argument("file", type=Path, help="a file of `dotlib simulate`, or of the same schema")
    for name, run, text in (
        ("study", _study, "Compute the missing runs of a study (arms x paired seeds)."),
        ("status", _status, "Show where each run of a study stands."),
    ):
        command = add(name, run, text, "4.2-baseline --profile smoke --seeds 2")
        command.add_argument("study", help=f"one of {', '.join(STUDIES)}")
        command.add_argument("--seeds", type=int, default=0, help="paired seeds; 0, the default: the study's own")
    commands.choices["study"].add_argument(
        "--on",
        choices=("here", "nowhere"),
        default="here",
        help="where runs are computed; nowhere: take those that are",
    )
    commands.choices["study"].add_argument("--record", action="store_true", help="write its tables to results/")
    command = add("judge", _judge, "Judge finished runs on other phantoms.", "--task reconstruct --record")
    command.add_argument("--record", action="store_true", help="write the judgements to results/")
    command.add_argument("--task", choices=("autoencode", "reconstruct"), default="autoencode",
                         help="the runs of section 4.5, or of 4.6 beside the classical methods")  # fmt: skip
    command.add_argument(
        "--sets", nargs="+", metavar="SET", help="of task reconstruct: only these, and the test phantoms"
    )
    command = add("tune", _tune, "Tune the classical reconstructions by validation.", "--profile quick --record")
    command.add_argument("--record", action="store_true", help="write the settings to results/")
    command = add("reconstruct", _reconstruct, "Reconstruct one recording.", "data/F.h5 --model runs/R/last.pt", False)
    command.add_argument("file", type=Path, help="a SNIRF file (.snirf), or a dataset file")
    command.add_argument(
        "--model", type=Path, nargs="+", required=True, help="checkpoints; of several seeds: with an sd"
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
    command = add("workbook", _workbook, "Run all notebooks and write the HTML book.", "--profile smoke -p seeds 2")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a notebook's parameter, as papermill takes it")  # fmt: skip
    command.add_argument("--notebook", type=Path, help="only this notebook")
    command = add("bench", _bench, "Time a part against a baseline of the same call.", "training --profile quick")
    command.add_argument("part", help="phantoms, training, forward, lift or overhead")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _simulate(arguments: argparse.Namespace) -> None:
    from .data import checks, dataset, simulate, store

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: a positive number is accepted")
    base = profile(arguments.profile).base.data
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    fields = base.model_dump() | {name: given[name] for name in ("family", "phantoms", "seed") if name in given}
    measurements = (base.measurements or Measurements()).model_dump()
    fields["measurements"] = measurements | {name: given[name] for name in ("grid", "precise") if name in given}
    config = validate(Data, fields, "simulate")
    path = arguments.out or dataset.location(config)
    simulate.simulate(config, path, arguments.workers)
    with store.File(path) as file:
        faults = checks.faults(file)
    print(f"{path}: {len(faults)} phantoms, {(faults != 0).sum()} of them excluded by their checks")
    if faults.all():
        raise simulate.SimulationError(f"{path}: {checks.none_usable(faults)}")


def _check(arguments: argparse.Namespace) -> None:
    from . import plots
    from .data import checks

    faults, changed = checks.report(arguments.file)
    bad = {i: checks.reasons(faults[i]) for i in faults.nonzero()[0]}
    print(f"{arguments.file}: {len(faults)} phantoms, {len(bad)} excluded")
    for reason, count in Counter(reason for found in bad.values() for reason in found).items():
        print(f"{reason}: {count}")
    for i, found in bad.items():
        print(f"phantom {i}: {'; '.join(found)}")
    if changed:
        print(f"the file's own checks differ for {changed} phantoms")
    picture = arguments.file.with_name(arguments.file.name + ".summary.png")
    try:
        plots.dataset_summary(**checks.sample(arguments.file, faults == 0)).savefig(picture)
        print(f"summary: {picture}")
    except OSError as error:
        print(f"no summary: {error}")


def _runs(arguments: argparse.Namespace) -> dict:
    named("study", STUDIES, arguments.study)
    profile(arguments.profile)
    if arguments.seeds < 0:
        raise ConfigError(f"--seeds {arguments.seeds}: a positive number, or 0 for the study's own, is accepted")
    from . import study  # slow: after what can be refused at once

    return study.members(arguments.study, arguments.profile, arguments.seeds, root() / "runs")


def _study(arguments: argparse.Namespace) -> int:
    wanted = _runs(arguments)
    from . import records, results, study

    folder = root() / "results" / arguments.study
    earlier = results.elsewhere(folder, arguments.profile, wanted) if arguments.record else None
    rows = [] if earlier is None else earlier.runs[["arm", "seed", "failed"]].itertuples(index=False, name=None)
    taken = {(arm, seed): line for arm, seed, line in rows}
    mine = {key: run for key, run in wanted.items() if key not in taken}
    if arguments.on == "nowhere":
        mine = {key: run for key, run in mine.items() if run.infra.status() == "completed"}
    study.compute(mine)
    histories = {key: run.result() for key, run in mine.items()}
    if arguments.record and histories:
        found = results.record(histories, arguments.profile, {key: run.data for key, run in mine.items()})
        found = found if earlier is None else results.joined(found, earlier, wanted)
        records.save(found, folder)
        print(f"recorded in {folder}: {len(histories)} runs from here, {len(taken)} that were there")
    _status(arguments)
    failed = taken | {key: history.failed for key, history in histories.items()}
    for (arm, seed), line in failed.items():
        if line:
            print(f"dotlib: {arm}, seed {seed} diverged: {line}", file=sys.stderr)
    return EXIT_FAILED if any(failed.values()) else 0


def _status(arguments: argparse.Namespace) -> None:
    wanted = _runs(arguments)
    from . import study

    print(study.status(wanted).to_string(index=False, float_format="%.1f", na_rep="-"))


def _judge(arguments: argparse.Namespace) -> None:
    profile(arguments.profile)
    if arguments.task == "reconstruct":
        return _judge_reconstructions(arguments)
    if arguments.sets:
        raise ConfigError("--sets: accepted with --task reconstruct")
    from . import judged_records, judgement

    home = root()
    wanted = judgement.members(arguments.profile, home / "runs")
    finished = judgement.completed(wanted)
    for arm, seed in [key for key in wanted if key not in finished]:
        print(f"missing: {arm}, seed {seed}")
    folder, earlier = home / "results" / judgement.NAME, None
    if arguments.record and folder.is_dir():
        earlier = judged_records.load(folder)
        earlier = judgement.elsewhere(earlier, wanted) if earlier.profile == arguments.profile else None
    found = judgement.judged(finished, arguments.profile, home / "runs", earlier)
    print(f"{len(finished)} of {len(wanted)} runs judged, on {found.table['set'].nunique() - 1} sets of phantoms")
    if arguments.record:
        print(f"taken over from the record: {0 if earlier is None else len(earlier.runs)}")
        judged_records.save(found, folder)
        print(f"recorded in {folder}")


def _judge_reconstructions(arguments: argparse.Namespace) -> None:
    from . import reconstruction_judgement as judgement
    from . import reconstruction_records, reconstruction_sets, reconstruction_tuning

    home, every = root(), reconstruction_sets.views(profile(arguments.profile).base.data)
    for name in arguments.sets or ():
        named("set", every, name)
    wanted = judgement.members(arguments.profile, 0, home / "runs")
    finished = {key: run for key, run in wanted.items() if run.infra.status() == "completed"}
    for arm, seed in [key for key in wanted if key not in finished]:
        print(f"missing: {arm}, seed {seed}")
    given = finished, arguments.profile, reconstruction_tuning.recorded()
    if arguments.sets:
        found = judgement.judged(*given, {reconstruction_sets.HOME, *arguments.sets})
    else:
        found = judgement.everywhere(*given, home / "runs")
    print(f"{len(finished)} of {len(wanted)} runs judged, on {found.values['set'].nunique()} sets")
    if arguments.record:
        folder = home / "results" / judgement.NAME
        if folder.is_dir() and (earlier := reconstruction_records.load(folder)).profile == arguments.profile:
            found = reconstruction_records.joined(found, earlier)
        reconstruction_records.save(found, folder)
        print(f"recorded in {folder}: {len(found.runs)} runs")


def _tune(arguments: argparse.Namespace) -> None:
    base = profile(arguments.profile).base.data
    from . import reconstruction_tuning as tuning

    found = tuning.table(base)
    print(found.to_string(index=False, float_format="%.4f"))
    if arguments.record:
        folder = root() / "results" / tuning.NAME
        tuning.save(found, arguments.profile, folder)
        print(f"recorded in {folder}")


def _reconstruct(arguments: argparse.Namespace) -> None:
    from . import reconstruct
    from .plots.reconstruction import planes

    source = arguments.file
    config, models = reconstruct.networks(arguments.model)
    if arguments.grid not in (None, config.data.grid):
        raise ConfigError(f"--grid {arguments.grid}: the network answers on {config.data.grid}^3")
    only = ("wavelength", "frequency", "saturation", "unit")
    if source.suffix == ".snirf" and arguments.phantom is not None:
        raise ConfigError(f"--phantom {arguments.phantom}: accepted with a dataset file")
    given = {name: value for name in only if (value := getattr(arguments, name)) is not None}
    if source.suffix == ".snirf":
        units = {"units": {"length": given.pop("unit")}} if "unit" in given else {}
        recording = reconstruct.from_snirf(source, config, arguments.every, arguments.radius, **given, **units)
    elif given:
        raise ConfigError(f"--{next(iter(given))}: accepted with a SNIRF file (.snirf)")
    else:
        recording = reconstruct.from_dataset(source, arguments.phantom or 0, config, arguments.every, arguments.radius)
    found = reconstruct.reconstruct(recording, config, models)
    stem = arguments.out or source.with_name(f"{source.stem}.reconstructed")
    written = reconstruct.save(found, recording, source, stem)
    picture = Path(f"{stem}.png")
    planes(found.mean, found.sd).savefig(picture)
    print(reconstruct.summary(found, recording, source))
    print(f"written: {', '.join(map(str, (*written, picture)))}")


def _workbook(arguments: argparse.Namespace) -> None:
    import yaml

    from . import workbook

    profile(arguments.profile)
    home = root()
    try:
        given = {name: yaml.safe_load(value) for name, value in arguments.parameter}
    except yaml.YAMLError as error:
        raise ConfigError(f"--parameter: {' '.join(str(error).split())}") from None
    page = workbook.run(arguments.profile, home / "build", arguments.notebook or home / "notebooks", given)
    print(f"open {page}")


def _bench(arguments: argparse.Namespace) -> None:
    from . import bench

    bench.run(arguments.part, profile(arguments.profile), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
