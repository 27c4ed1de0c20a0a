"""One run of a study: a configuration, its folder in the store, and where it stands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pydantic
import torch

from . import checkpoint, history, inference, machine, perceptual, tracking, trainer, workers
from .config import Config
from .history import History
from .provenance import code_digest, commit

VERSION = 2  # raised whenever the same configuration would give other numbers
RESULT, FAILURE, QUEUED = "history.pt", "failed.json", "queued.json"
# what a run fails by, and no other with it; SystemError is what Python may make of memory refused during an import
FAILURES = (RuntimeError, ValueError, ArithmeticError, OSError, MemoryError, ImportError, SystemError)
PATIENCE = 2.0  # seconds that a run waits for its lock: who asks for its state holds it for an instant


class StudyError(RuntimeError):
    """A study that could not be completed, as one line."""


class Run(pydantic.BaseModel):
    """A configuration and its result: one folder for each configuration, data and version of the training code.

    The folder holds plain data alone: config.json, the checkpoints, so that a killed run continues, and the result,
    which is read with its digest, so that a damaged one is computed anew.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    config: Config
    data: str  # what tells its phantoms, readings and split apart
    store: Path

    @property
    def key(self) -> str:
        """What tells runs apart."""
        held = json.dumps([VERSION, self.config.digest(), self.data])
        return hashlib.sha256(held.encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """The folder, whether it is there or not."""
        c = self.config
        return self.store / f"{c.task}-{c.model.name}-{c.optim.name}-{c.seed}-{self.key}"

    def folder(self) -> Path:
        """The folder, which says what it is of."""
        self.path.mkdir(parents=True, exist_ok=True)
        fields = {"config": self.config.model_dump(mode="json"), "data": self.data, "version": VERSION}
        about, content = self.path / "config.json", json.dumps(fields, indent=1).encode()
        if not about.exists() or about.read_bytes() != content:  # a damaged one
            checkpoint.write(about, content)
        return self.path

    def describe(self) -> None:
        """Say anew what a finished run's folder is of, where that is damaged; a store that may only be read stays."""
        with contextlib.suppress(OSError):
            self.folder()

    def kept(self) -> History | None:
        """The result; None where there is none, or a damaged one."""
        try:
            return history.load(self.path / RESULT, self.key)
        except checkpoint.CheckpointError:
            return None

    def done(self) -> bool:
        """Whether the result is there and undamaged: `kept`, without its tables."""
        try:
            history.whole(self.path / RESULT, self.key)
        except checkpoint.CheckpointError:
            return False
        return True

    def failure(self) -> str:
        """Why the run could not be computed the last time, as one line; empty where it could, or was not tried."""
        try:
            return json.loads((self.path / FAILURE).read_text(encoding="utf-8"))["error"]
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def progress(self) -> dict:
        """What the run said last of how far it is; empty where it did not, or what it said is damaged."""
        try:
            found = json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def keep_failure(self, line: str) -> None:
        checkpoint.write(self.folder() / FAILURE, json.dumps({"error": line}).encode(), durable=False)

    def forget_failure(self) -> None:
        (self.path / FAILURE).unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether some process is computing it."""
        if not (path := self.path / "lock").exists():
            return False
        try:
            with filelock.FileLock(path, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:  # a store that may only be read
            return False

    def result(self, report: Callable[[dict], None] | None = None) -> History:
        """The result, computed where it is missing: trained, or continued, and judged. `report` is told of each epoch.

        A run that diverges is a result too. Raises StudyError where another process computes it, or a run that it
        rests on diverged; what `trainer.fit` raises is kept as the run's failure, too, until it is tried again.
        """
        if (found := self.kept()) is not None:
            return found
        with self.alone():
            return self.computed(report)

    def computed(self, report: Callable[[dict], None] | None = None, group: str = "") -> History:
        """The result, for a process that has the folder `alone`. `group`: that of its W&B run, if not its own."""
        if (found := self.kept()) is None:
            self.forget_failure()
            try:
                history.save(self._computed(report, group), self.path / RESULT, self.key)
            except workers.Ended:  # no failure: it continues
                raise
            except FAILURES as error:
                with contextlib.suppress(OSError):  # a full disk: the error itself is raised
                    self.keep_failure((str(error).strip().splitlines() or [type(error).__name__])[0])
                raise
            found = history.load(self.path / RESULT, self.key)
        return found

    def so_far(self) -> list[dict]:
        """The epochs from which it would continue, a row each."""
        try:
            return checkpoint.load(self.path / "last.pt", self.config.digest())["epochs"]
        except checkpoint.CheckpointError:
            return []

    def _computed(self, report: Callable[[dict], None] | None, group: str) -> History:
        folder = self.folder()
        self._set_aside_damaged()
        facts = {"data key": self.data, "code": code_digest(), "versions": machine.versions()} | commit()
        tracker = tracking.start(self.config, folder, facts, group=group)
        try:
            return trainer.fit(
                self.config, folder, report=report, tracker=tracker, teacher=self._taught(),
                ending=workers.asked_to_end,
            )  # fmt: skip
        except trainer.DivergedError as error:
            return error.history
        finally:
            tracker.finish()

    def _set_aside_damaged(self) -> None:
        """What cannot be continued from is renamed, and said: the run starts anew."""
        path = self.path / "last.pt"
        try:
            if path.exists():
                checkpoint.load(path, self.config.digest())
        except checkpoint.CheckpointError as error:
            path.replace(path.with_suffix(".damaged"))
            line = str(error).removesuffix("; remove it to start anew")
            print(f"dotlib: {line}; set aside as last.damaged, and the run starts anew", file=sys.stderr)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The folder for this process alone; StudyError where another has it."""
        folder = self.folder()
        try:
            with filelock.FileLock(folder / "lock", timeout=PATIENCE):
                yield
        except filelock.Timeout:
            raise StudyError(f"{folder}: another process is training this run") from None

    def teacher(self) -> Run | None:
        """The run that the perceptual term of this one looks through, or its decoder starts from."""
        config = perceptual.teacher_config(self.config)
        return config and Run(config=config, data=self.data.split("+")[0], store=self.store)

    def _taught(self) -> torch.nn.Module | None:
        if not (teacher := self.teacher()):
            return None
        if failed := teacher.result().failed:
            raise StudyError(f"{teacher.path}: the autoencoder that a run rests on diverged: {failed}")
        return inference.trained(teacher.config, teacher.path, on=machine.device())
