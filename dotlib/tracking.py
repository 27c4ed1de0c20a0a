"""A run's curves and pictures in W&B; how often pictures, $DOTLIB_IMAGES_EVERY says (epochs, 0: never).

wandb is imported and spoken to by a process of its own, the recorder. So whatever becomes of wandb, its service, the
disk or the network, a training process keeps its random generators, its exit and its weights, and waits for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import psutil

from .config import Config, ConfigError

if TYPE_CHECKING:  # the recorder starts without it
    import pandas as pd

MODES = ("offline", "online", "disabled")
PATIENCE = 20.0  # seconds that `finish` grants the recorder
# Settings of wandb that the user's environment may overrule; versions that do not know one of them pass over it.
QUIET = {
    "WANDB_PROJECT": "dotlib",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",  # no patch of the working tree
    "WANDB_DISABLE_CODE": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB__DISABLE_STATS": "true",  # the monitor samples
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_MACHINE_INFO": "true",
    "WANDB__SAVE_REQUIREMENTS": "false",
}


class Tracker:
    """What the training loop tells of a run; without a recorder it does nothing.

    When the recorder has failed, one line on standard error says why, and from then on the tracker does nothing.
    """

    def __init__(
        self,
        recorder: subprocess.Popen | None = None,
        errors: IO[bytes] | None = None,
        options: Mapping[str, Any] | None = None,
        images_every: int = 1,
    ):
        self._recorder, self._errors, self._images_every = recorder, errors, images_every
        self._messages: SimpleQueue = SimpleQueue()
        if recorder:
            self._messages.put(options)
            Thread(target=_feed, args=(self._messages, recorder.stdin), daemon=True).start()

    def __bool__(self) -> bool:
        """Whether anything is recorded; where not, nothing need be told."""
        return self._recording()

    def wants_slices(self, epoch: int) -> bool:
        """Whether pictures of an epoch are kept."""
        return bool(self._images_every) and epoch % self._images_every == 0

    def epoch(self, row: Mapping[str, Any], steps: pd.DataFrame, slices: Mapping[str, np.ndarray]) -> None:
        """Hand over an epoch: its row, its steps (by global step number) and grey pictures (H, W), 0 black, 1 white."""
        if not self._recording():
            return
        wanted = slices if self.wants_slices(row["epoch"]) else {}
        pictures = {name: _grey(picture) for name, picture in wanted.items()}
        self._messages.put((dict(row), steps.index.tolist(), steps.to_dict("list"), pictures))

    def finish(self) -> None:
        """Wait, PATIENCE seconds at most, until the recorder has written (online: uploaded) what it was told."""
        if not self._recording():
            return
        self._messages.put(None)
        try:
            self._recorder.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._stop(f"not done {PATIENCE:g} s after the run's end; `wandb sync` uploads what lies in its folder")
        self._recording()
        self._recorder = None

    def _recording(self) -> bool:
        if self._recorder and self._recorder.poll():
            self._stop(_reason(self._errors) or f"its process ended with code {self._recorder.returncode}")
        return self._recorder is not None

    def _stop(self, reason: str) -> None:
        warn(reason)
        _kill(self._recorder)
        self._messages.put(None)
        self._recorder = None


def start(
    config: Config,
    folder: Path,
    facts: Mapping[str, Any],
    mode: str | None = None,
    images_every: int | None = None,
    group: str = "",
) -> Tracker:
    """Track a run in `folder`/wandb, offline unless `mode` or else $WANDB_MODE says otherwise.

    The W&B configuration is `config`, and `facts`: data, commit, versions. Task and network, or `group`, group the
    runs; optimiser, schedule and seed name them. A continued run keeps its W&B run, and what was logged before is not
    logged again. Pictures are kept every `images_every` epochs, or else every $DOTLIB_IMAGES_EVERY, or every one; never
    at 0. Raises ConfigError for an unknown mode or number.
    """
    images_every = images() if images_every is None else images_every
    if (chosen := resolved(mode)) == "disabled":
        return Tracker()
    options = _options(config, folder.resolve(), facts, chosen) | ({"group": group} if group else {})
    environment = QUIET | {"WANDB_CACHE_DIR": str(Path(options["dir"], "wandb", "cache"))} | os.environ
    environment.pop("WANDB_SERVICE", None)  # that of a run which the user may have in this process
    try:
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the tracker)
        # a session of its own: Ctrl-C is the training's affair, and nobody can be asked for a key
        recorder = subprocess.Popen(
            [sys.executable, "-m", "dotlib.tracking"], cwd=Path(__file__).parents[1], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, bufsize=0,
        )  # fmt: skip
    except OSError as error:
        warn(str(error))
        return Tracker()
    return Tracker(recorder, errors, options, images_every)


def resolved(mode: str | None = None) -> str:
    """Offline, unless `mode` or else $WANDB_MODE says otherwise. Raises ConfigError for an unknown mode."""
    found = mode or os.environ.get("WANDB_MODE") or "offline"
    if found not in MODES:
        raise ConfigError(f"W&B mode {found!r}; accepted: {', '.join(MODES)}")
    return found


def images() -> int:
    """Epochs from picture to picture: $DOTLIB_IMAGES_EVERY, or 1. Raises ConfigError for what is no whole number."""
    found = os.environ.get("DOTLIB_IMAGES_EVERY") or "1"
    if not found.isdecimal():
        raise ConfigError(f"DOTLIB_IMAGES_EVERY {found!r}; accepted: a whole number, 0 for no pictures")
    return int(found)


def run_id(config: Config, folder: Path) -> str:
    """The W&B run of a configuration in a folder."""
    return f"{config.digest()}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]}"


def warn(reason: str) -> None:
    print(f"dotlib: W&B tracking ended ({reason[:200]}); the run goes on without", file=sys.stderr)


def _options(config: Config, folder: Path, facts: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """What wandb.init is called with."""
    optim = config.optim
    return {
        "id": run_id(config, folder),
        "dir": str(folder),
        "mode": mode,
        "resume": "allow",
        "group": f"{config.task} {config.model.name}",
        "name": f"{optim.name} {optim.schedule} {config.seed}",
        "config": config.model_dump(mode="json") | {"facts": dict(facts)},
    }


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.round(255 * np.nan_to_num(np.clip(picture, 0, 1))).astype(np.uint8)


def _feed(messages: SimpleQueue, pipe: IO[bytes]) -> None:
    """Pass messages on until None, in a thread: a recorder that stalls never holds up the training."""
    with contextlib.suppress(OSError), pipe:  # a recorder that is gone is noticed by the tracker
        for message in iter(messages.get, None):
            rest = memoryview(pickle.dumps(message))
            while rest:
                rest = rest[pipe.write(rest) :]


def _kill(process: subprocess.Popen) -> None:
    """End a process and what it has started, wandb's service among it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk may keep even a killed process
        process.wait(1)


def _reason(errors: IO[bytes]) -> str:
    """The first exception that a process has printed, in one line."""
    errors.seek(0)
    found = re.search(r"^[\w.]*(?:Error|Exception|Expired)\b.*", errors.read().decode(errors="replace"), re.MULTILINE)
    return found.group() if found else ""


def record(pipe: IO[bytes]) -> None:
    """The recorder: open a W&B run and log the epochs that come along the pipe, until it closes."""
    import wandb

    messages = _received(pipe)
    options = next(messages)
    folder = Path(options["dir"], "wandb")
    folder.mkdir(parents=True, exist_ok=True)  # wandb itself would turn to the system's temporary folder
    logged = folder / "logged"
    last = int(logged.read_text()) if logged.exists() else -1
    run = wandb.init(**options)
    for metric in ("step", "epoch"):
        run.define_metric(metric)
        run.define_metric(f"{metric}/*", step_metric=metric)
    for row, numbers, steps, pictures in messages:
        if numbers[-1] > last:
            for number, *values in zip(numbers, *steps.values(), strict=True):
                run.log({"step": number} | _named("step", dict(zip(steps, values, strict=True))), step=number)
            images = _named("slices", {name: wandb.Image(picture) for name, picture in pictures.items()})
            run.log({"epoch": row.pop("epoch")} | _named("epoch", row) | images, step=numbers[-1])
            last = numbers[-1]
            _write(logged, last)
    run.finish()
    _write(logged, last)  # fails on a full disk, of which wandb's service says nothing


def _received(pipe: IO[bytes]) -> Iterator[Any]:
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # closed, or cut off with a training that was killed
        while True:
            yield pickle.load(pipe)


def _named(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _write(path: Path, number: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(f"{number}\n")
    os.replace(part, path)


if __name__ == "__main__":
    record(sys.stdin.buffer)
