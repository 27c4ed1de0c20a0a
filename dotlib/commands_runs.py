"""What `dotlib runs` does: list, show, remove, export, merge."""

import argparse
import sys
from pathlib import Path

from .arms import STUDIES
from .config import ConfigError, named, profile, root

EXIT_FAILED = 1


def ls(arguments: argparse.Namespace) -> None:
    from . import run_store

    store = arguments.store or root() / "runs"
    found = run_store.table(store, arguments.verify)
    print(found.to_string(index=False, float_format="%.4g", na_rep="-") if len(found) else f"{store}: no runs")
    print(f"{len(found)} runs; {store}: {run_store.size(store) / 1e6:.1f} MB on the disk")


def show(arguments: argparse.Namespace) -> None:
    from . import run_store

    for folder in run_store.named(arguments.store or root() / "runs", arguments.names):
        print(run_store.show(folder), end="")


def rm(arguments: argparse.Namespace) -> None:
    from . import run_store

    folders = run_store.named(arguments.store or root() / "runs", arguments.names)
    names = ", ".join(folder.name for folder in folders)
    print(f"removed: {names}; {run_store.remove(folders) / 1e6:.1f} MB")


def export(arguments: argparse.Namespace) -> int:
    profile(arguments.profile)
    for name in arguments.names:
        named("study", STUDIES, name)
    from . import records, results
    from . import study as studies

    failed = False
    for name in arguments.names or STUDIES:
        try:
            wanted = studies.members(name, arguments.profile, 0, arguments.store or root() / "runs")
            finished = {key: found for key, run in wanted.items() if (found := run.kept()) is not None}
            if finished:
                folder = root() / "results" / name
                earlier = results.elsewhere(folder, arguments.profile, wanted)
                print(results.recorded(folder, arguments.profile, wanted, finished, earlier))
            elif arguments.names:
                print(f"{name}: no finished run of the {arguments.profile} profile", file=sys.stderr)
        except (ConfigError, records.ResultsError, studies.StudyError) as error:  # the others are written
            print(f"{name}: {error}", file=sys.stderr)
            failed |= bool(arguments.names) or not isinstance(error, ConfigError)  # else one that cannot be begun yet
    return EXIT_FAILED if failed else 0


def merge(arguments: argparse.Namespace) -> None:
    from . import run_store

    for name in arguments.names:
        print(f"{name}: {run_store.merge(Path(name), arguments.store or root() / 'runs')} runs taken over")
