"""In every process of a disturbed command: it tells of its work and its files, and has studies of tiny runs.

Python imports this at its start, from the PYTHONPATH that `project.Project` sets. Told are, a line each, in the file
$DISTURBED_TOLD: epochs that are begun and kept, results, shards that are begun and kept, files that are opened to be
written, renamed and removed. $DISTURBED_FULL, "PATTERN N", makes the disk full as the N-th file is opened to be written
whose path fits the pattern. $DISTURBED_MEMORY is what a process that trains may take more, in MB; of those that train,
the one that removes the file $DISTURBED_GREEDY takes all that it can. $DISTURBED_GROUP is the folder of a control group
that each process enters.
"""

import contextlib
import fnmatch
import importlib.abc
import importlib.machinery
import os
import resource
import signal
import sys
import time

FOLDER, TOLD = os.environ.get("DISTURBED_FOLDER", "\0"), os.environ.get("DISTURBED_TOLD", "")
BALLOON = "balloon"
EPOCHS = int(os.environ.get("DISTURBED_EPOCHS", "12"))
PAUSE = float(os.environ.get("DISTURBED_PAUSE", "0.15"))  # seconds an epoch takes longer
_out = os.open(TOLD, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if TOLD else None


def tell(*words) -> None:
    with contextlib.suppress(OSError):  # no room for it either
        os.write(_out, ("\t".join(map(str, (f"{time.time():.4f}", os.getpid(), *words))) + "\n").encode())


def fill(folder: str) -> None:
    """A disk of its own is filled to its last page; else no file of this process may grow."""
    if os.path.ismount(folder):
        with open(os.path.join(folder, BALLOON), "wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                while True:
                    try:
                        if file.write(bytes(size)) < size:
                            break
                    except OSError:
                        break
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class _Files:
    """The audit hook: what becomes of files below the folder."""

    def __init__(self):
        pattern, _, number = os.environ.get("DISTURBED_FULL", "").partition(" ")
        self.pattern, self.left = pattern, int(number or 1)

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove"):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(FOLDER + "/") or path.endswith((BALLOON, ".pyc")) or "__pycache__" in path:
            return
        if event == "open":
            mode, flags = arguments[1], arguments[2] or 0
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not flags & (os.O_WRONLY | os.O_RDWR):
                return
        path = path[len(FOLDER) + 1 :]
        if self.pattern and event == "open" and fnmatch.fnmatch(path, self.pattern):
            self.left -= 1
            if self.left == 0:
                tell("full", path)
                fill(FOLDER)
        tell("file", event, path)


def of_arms(arms) -> None:
    tiny = {"data.measurements": None, "model.width": 2, "model.code": 8, "training.precision": "fp32"}
    tiny |= {"training.epochs": EPOCHS}
    for name in ("stage1-adam", "stage1-onecycle"):
        arms.ARMS[f"tiny-{name}"] = arms.Arm(arms.ARMS[name].changes | tiny, "made up")
    names = ("tiny-stage1-adam", "tiny-stage1-onecycle")
    arms.STUDIES |= {"tiny": arms.Study(names, 2), "tiny-one": arms.Study(names[1:], 1)}
    arms.CANDIDATES["tiny"], arms.TUNING["tiny"] = arms.CANDIDATES["adam-constant"], names[:1]


_run = ["?"]


def take_all(token: str) -> None:
    """All memory that there is, by the one process that removes this file."""
    try:
        os.remove(token)
    except FileNotFoundError:
        return
    held = []
    while True:
        held.append(b"\1" * (1 << 24))


def of_trainer(trainer) -> None:
    fit, order = trainer.fit, trainer.order

    def slow_fit(config, folder, *arguments, **options):
        _run[0] = folder.name
        if megabytes := float(os.environ.get("DISTURBED_MEMORY", 0)):
            with open("/proc/self/statm") as file:
                limit = int(file.read().split()[0]) * resource.getpagesize() + int(megabytes * 2**20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if token := os.environ.get("DISTURBED_GREEDY"):
            take_all(token)
        told = {"report": lambda row: time.sleep(PAUSE), "save_every": 0.0} if config.training.epochs == EPOCHS else {}
        return fit(config, folder, *arguments, **(options | told))

    def told_order(n, seed, epoch):
        tell("epoch", _run[0], epoch)
        return order(n, seed, epoch)

    trainer.fit, trainer.order = slow_fit, told_order


def of_checkpoint(checkpoint) -> None:
    save = checkpoint.save

    def told_save(path, state, *arguments, **options):
        save(path, state, *arguments, **options)
        if path.name == "last.pt":
            tell("kept", path.parent.name, len(state["epochs"]))
        elif path.name == "history.pt":
            tell("result", path.parent.name)

    checkpoint.save = told_save


def of_simulate(simulate) -> None:
    make = simulate.Shard.make

    def told_make(self):
        tell("shard", self.path.parent.name, self.first, self.count)
        make(self)
        tell("made", self.path.parent.name, self.first)

    simulate.Shard.make = told_make


def of_schema(schema) -> None:
    schema.BLOCK = 4  # more shards for fewer phantoms


HOOKS = {
    "dotlib.arms": of_arms, "dotlib.trainer": of_trainer, "dotlib.checkpoint": of_checkpoint,
    "dotlib.data.simulate": of_simulate, "dotlib.data.schema": of_schema,
}  # fmt: skip


class _Finder(importlib.abc.MetaPathFinder):
    """Modules as Python finds them, changed as soon as they are there."""

    def find_spec(self, name, path, target=None):
        if name not in HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            HOOKS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if TOLD:
    if group := os.environ.get("DISTURBED_GROUP"):
        with open(os.path.join(group, "cgroup.procs"), "w") as processes:
            processes.write("0")
    sys.meta_path.insert(0, _Finder())
    sys.addaudithook(_Files())
    tell("start")
