"""What the commands do; `__main__` says what they are called with."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from .arms import CANDIDATES, STUDIES
from .config import ConfigError, Data, Measurements, named, profile, root, validate

EXIT_FAILED = 1


def simulate(arguments: argparse.Namespace) -> None:
    from .data import checks, dataset, store
    from .data import simulate as simulation

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: a positive number is accepted")
    base = profile(arguments.profile).base.data
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    fields = base.model_dump() | {name: given[name] for name in ("family", "phantoms", "seed") if name in given}
    measurements = (base.measurements or Measurements()).model_dump()
    fields["measurements"] = measurements | {name: given[name] for name in ("grid", "precise") if name in given}
    config = validate(Data, fields, "simulate")
    path = arguments.out or dataset.location(config)
    simulation.simulate(config, path, arguments.workers, _elsewhere(arguments, path))
    with store.File(path) as file:
        file.digests()  # an earlier file may be damaged meanwhile
        faults = checks.faults(file)
    print(f"{path}: {len(faults)} phantoms, {(faults != 0).sum()} of them excluded by their checks")
    if faults.all():
        raise simulation.SimulationError(f"{path}: {checks.none_usable(faults)}")


def _elsewhere(arguments: argparse.Namespace, path: Path):
    """Where shards are made, if not here."""
    if arguments.on == "here":
        return None
    from . import cluster, shards

    return shards.OnSlurm(path, cluster.asked())


def check(arguments: argparse.Namespace) -> None:
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


def _require_place(arguments: argparse.Namespace) -> None:
    if arguments.per_gpu < 1:
        raise ConfigError(f"--per-gpu {arguments.per_gpu}: a positive number is accepted")
    if arguments.per_gpu > 1 and arguments.on != "here":
        raise ConfigError("--per-gpu: accepted with --on here")


def study(arguments: argparse.Namespace) -> int:
    _require_place(arguments)
    wanted = _runs(arguments)
    from . import results, study

    folder = root() / "results" / arguments.study
    earlier = results.elsewhere(folder, arguments.profile, wanted) if arguments.record else None
    rows = [] if earlier is None else earlier.runs[["arm", "seed", "failed"]].itertuples(index=False, name=None)
    taken = {(arm, seed): line for arm, seed, line in rows}
    mine = {key: run for key, run in wanted.items() if key not in taken}
    if arguments.on == "nowhere":
        mine = {key: run for key, run in mine.items() if run.done()}
    else:
        study.compute(mine, arguments.on, arguments.per_gpu)
    histories = {key: run.result() for key, run in mine.items()}
    if arguments.record and histories:
        print(results.recorded(folder, arguments.profile, wanted, histories, earlier))
    status(arguments)
    failed = taken | {key: history.failed for key, history in histories.items()}
    for (arm, seed), line in failed.items():
        if line:
            print(f"dotlib: {arm}, seed {seed} diverged: {line}", file=sys.stderr)
    return EXIT_FAILED if any(failed.values()) else 0


def status(arguments: argparse.Namespace) -> None:
    wanted = _runs(arguments)
    from . import study

    print(study.status(wanted).to_string(index=False, float_format="%.1f", na_rep="-"))


def sweep(arguments: argparse.Namespace) -> int:
    _require_place(arguments)
    profile(arguments.profile)
    names = list(CANDIDATES) if "all" in arguments.candidates else arguments.candidates
    for name in names:
        named("candidate", {"all": None, **CANDIDATES}, name)
    if arguments.trials < 1:
        raise ConfigError(f"--trials {arguments.trials}: a positive number is accepted")
    from . import sweep

    how = arguments.trials, arguments.sampler, arguments.pruner
    searches = sweep.planned(names, arguments.profile, root() / "runs", *how)
    found = sweep.compute(searches, arguments.on, arguments.per_gpu)
    print(found.to_string(index=False, float_format="%.4g", na_rep="-"))
    return EXIT_FAILED if found["error"].isna().any() else 0


def judge(arguments: argparse.Namespace) -> None:
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
    finished = {key: run for key, run in wanted.items() if run.done()}
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


def tune(arguments: argparse.Namespace) -> None:
    base = profile(arguments.profile).base.data
    from . import reconstruction_tuning as tuning

    found = tuning.table(base)
    print(found.to_string(index=False, float_format="%.4f"))
    if arguments.record:
        folder = root() / "results" / tuning.NAME
        tuning.save(found, arguments.profile, folder)
        print(f"recorded in {folder}")


def reconstruct(arguments: argparse.Namespace) -> None:
    from . import reconstruct
    from .plots.reconstruction import planes

    source, networks = arguments.file, arguments.model
    if not networks:
        from . import trained

        networks = trained.checkpoints(root() / "runs")
    config, models = reconstruct.networks(networks)
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


def snirf(arguments: argparse.Namespace) -> None:
    from . import reconstruct
    from .data import snirf

    recording = reconstruct.as_snirf(arguments.file, arguments.phantom, arguments.wavelength)
    to = arguments.out or arguments.file.with_name(f"{arguments.file.stem}.{arguments.phantom}.snirf")
    snirf.write(to, recording)
    print(f"{to}: {len(recording.pairs)} pairs at {recording.frequency / 1e6:g} MHz and {recording.wavelength:g} nm")


def workbook(arguments: argparse.Namespace) -> None:
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


def figures(_: argparse.Namespace) -> None:
    from . import workbook

    home = root()
    page = workbook.render(home / "build", home / "notebooks", home / "figures")
    print(f"written: {home / 'figures'}; open {page}")


def thesis(arguments: argparse.Namespace) -> None:
    from . import thesis

    home = root()
    folders = [home / "figures"]
    if arguments.draft:
        profile(arguments.draft)
        folders.append(home / "build" / arguments.draft / "figures")
    made = thesis.compile(folders, home / "notebooks", home / "build" / "thesis", bool(arguments.draft))
    print(f"written: {made}")


def bench(arguments: argparse.Namespace) -> None:
    from . import bench

    bench.run(arguments.part, profile(arguments.profile), arguments.json)
