"""The ledger of a search: which trials were begun, and how each ended, as Optuna's journal.

It is lines of JSON, and reading it executes nothing. What is believed of it is which trials are in work, which were
pruned, and which points TPE has drawn, each checked against its range; whether a trial is finished, and with which
error, is read from its run. So a journal that is lost costs the pruned trials, and of TPE with several workers those
whose points come out otherwise.

A trial in work holds the lock of its run from before it is written down until its end is: one without a holder is of a
process that died. It is closed as FAIL, and its point is begun anew, where the run continues from its checkpoint. A
trial is counted by its place in the search, not by the journal's number, so that such a point counts once.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from .history import History
from .run import Run, StudyError
from .search import Point, Search, median

ERROR = "nrmse_mua"  # of validation, at the end: what is sought to be low
PATIENCE = 300.0  # seconds that a process waits for others to choose their trials


class LedgerError(ValueError):
    """A journal that cannot be used, as one line."""


Begun = Mapping[int, list[FrozenTrial]]  # by place in the search, in the order in which they were begun


@dataclass(frozen=True)
class Turn:
    """A trial in work: its place in the search, its run, whose folder this process has for itself, and Optuna's."""

    index: int
    run: Run
    trial: Trial


class Ledger:
    """The journal of a search, opened or begun.

    Raises LedgerError where it is damaged; a last line that was cut off as its writer died is removed.
    """

    def __init__(self, search: Search):
        self.search, self.path = search, search.folder / "journal.log"
        search.folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[Path, History] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        epochs = search.base.config.training.epochs
        pruners = {"none": optuna.pruners.NopPruner(), "median": median(epochs)}
        lock = filelock.FileLock(search.folder / "journal.lock")  # one that a killed process cannot leave behind
        with self._alone(), self._readable():
            with lock:
                _mend(self.path)
            storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock))
            opened = {"storage": storage, "study_name": search.name, "pruner": pruners[search.pruner]}
            opened["sampler"] = optuna.samplers.RandomSampler(0)  # asked for nothing: each trial is given its point
            begun = search.name in optuna.get_all_study_names(storage)  # to create it once more would leave a line
            self.study = optuna.load_study(**opened) if begun else optuna.create_study(**opened)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn | None]:
        """The next trial, begun; None where all are finished, in work, or have failed since they were last asked for.

        Any number of processes may ask: each trial is begun by one of them, those that were lost last.
        """
        with contextlib.ExitStack() as held:
            with self._alone():
                found = self._next(held)
            yield found

    def _next(self, held: contextlib.ExitStack) -> Turn | None:
        begun = self._settled()
        for index in self._open(begun):
            point = self._point(index, begun) or self.search.drawn(index, self._known(index, begun))
            run = self.search.run(point)
            if run.failure() or run.busy():
                continue
            with contextlib.suppress(StudyError):  # another process was faster
                held.enter_context(run.alone())
                self.study.enqueue_trial(dict(point), user_attrs={"index": index, "point": dict(point)})
                trial = self.study.ask(self.search.distributions)
                for row in run.so_far():
                    trial.report(row[ERROR], row["epoch"])
                return Turn(index, run, trial)
        return None

    def finish(self, turn: Turn, history: History) -> None:
        """A run that came to its end. One that diverged has an infinite error: it never wins, and TPE turns away."""
        turn.trial.set_user_attr("failed", history.failed)
        self.study.tell(turn.trial, _error(history))

    def prune(self, turn: Turn) -> None:
        self.study.tell(turn.trial, state=TrialState.PRUNED)

    def fail(self, turn: Turn, error: Exception) -> None:
        """A run that could not be computed: its point is tried again when the search is started again."""
        turn.trial.set_user_attr("error", (str(error).splitlines() or [type(error).__name__])[0])
        self.study.tell(turn.trial, state=TrialState.FAIL)

    def left(self, again: bool = False) -> int:
        """How many trials are neither finished nor in work; `again`: what failed is forgotten, and may be tried again.

        Without it, those that failed are not counted.
        """
        with self._alone():
            begun = self._settled()
            places = self._open(begun)
            runs = [self.search.run(point) for i in places if (point := self._point(i, begun))]
            if again:
                for run in runs:
                    run.forget_failure()
            return len(places) - sum(bool(run.failure()) for run in runs)

    def unfinished(self) -> dict[int, str]:
        """Why each trial that is not finished is not, by place; empty where it is only to be continued."""
        with self._alone():
            begun, found = self._settled(), {}
            for index in range(self.search.trials):
                if not self._ended(index, begun):
                    point = self._point(index, begun)
                    run = self.search.run(point) if point else None
                    busy = "another process is training it" if run and run.busy() else ""
                    told = begun[index][-1].user_attrs.get("error", "") if begun.get(index) else ""
                    found[index] = (run and run.failure()) or busy or told  # on a full disk, only the journal has it
            return found

    def table(self) -> list[dict]:
        """A row a finished trial: place, point, epochs, error (NaN where it was pruned or diverged), pruned, failed."""
        with self._alone():
            begun, rows = self._settled(), []
        for index in range(self.search.trials):
            if not (trial := self._ended(index, begun)):
                continue
            point = self._point(index, begun)
            row = {"place": index} | dict(point) | {"pruned": trial.state == TrialState.PRUNED, "failed": ""}
            if row["pruned"]:
                row |= {"epochs": 1 + max(trial.intermediate_values, default=-1), "error": math.nan}
            else:
                history = self._result(self.search.run(point))
                row |= {"epochs": len(history.epochs), "failed": history.failed, "error": math.nan}
                if not history.failed:
                    row["error"] = _error(history)
            rows.append(row)
        return rows

    def trials(self) -> list[FrozenTrial]:
        """All that was begun, in that order, the lost ones too."""
        with self._readable():
            return self.study.get_trials(deepcopy=False)

    def _settled(self) -> Begun:
        """What was begun, after the trials whose process died are closed, and the runs that the store has taken in."""
        with self._readable():
            for _ in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self.study.tell(self.study.ask(), state=TrialState.FAIL)  # its process died before it was begun
        begun = self._begun()
        free = {
            trial.number
            for index, trials in begun.items()
            for trial in trials
            if trial.state == TrialState.RUNNING and not self.search.run(self._point(index, begun)).busy()
        }
        for trial in self.trials():  # anew: what ended since then was told before its run was free
            if trial.number in free and trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
        begun = self._begun()
        for index in self._open(begun):
            point = self._point(index, begun)
            if point and (history := self._result(self.search.run(point))):
                self._take_in(index, point, history)
        return self._begun()

    def _begun(self) -> Begun:
        """What was begun; what has another point than belongs to its place is left out."""
        found = defaultdict(list)
        for trial in self.trials():
            index, point = (trial.user_attrs.get(name) for name in ("index", "point"))
            if type(index) is not int or not self.search.accepts(point):
                raise LedgerError(self._line(f"trial {trial.number} has no place, or no point in the ranges"))
            if self.search.fixed(index) in (None, point):
                found[index].append(trial)
        return found

    def _take_in(self, index: int, point: Point, history: History) -> None:
        """A trial that was computed elsewhere, as if it had been begun and finished here."""
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=_error(history),
                params=dict(point),
                distributions=self.search.distributions,
                user_attrs={"index": index, "point": dict(point), "failed": history.failed},
                intermediate_values=dict(zip(map(int, history.epochs["epoch"]), history.epochs[ERROR], strict=True))
                if len(history.epochs)
                else {},
            )
        )

    def _point(self, index: int, begun: Begun) -> Point | None:
        """The point of a trial, by its place or as it was begun; None where it is yet to be drawn."""
        return self.search.fixed(index) or (begun[index][0].user_attrs["point"] if begun.get(index) else None)

    def _ended(self, index: int, begun: Begun) -> FrozenTrial | None:
        """The trial that finished a place: pruned, or complete, with its result in the store."""
        for trial in begun.get(index, ()):
            if trial.state == TrialState.PRUNED:
                return trial
            if trial.state == TrialState.COMPLETE and self._result(self.search.run(self._point(index, begun))):
                return trial
        return None

    def _open(self, begun: Begun) -> list[int]:
        """Places that are neither finished nor in work, the less often begun ones first."""
        places = [
            index
            for index in range(self.search.trials)
            if all(trial.state.is_finished() for trial in begun.get(index, ())) and not self._ended(index, begun)
        ]
        return sorted(places, key=lambda index: len(begun.get(index, ())))

    def _known(self, index: int, begun: Begun) -> list[FrozenTrial]:
        """What TPE knows when it draws a point: a trial for each place before it, the lost ones left out."""
        found = []
        for place, trials in sorted(begun.items()):
            last = next((t for t in reversed(trials) if t.state != TrialState.FAIL), None)
            if place < index and last is not None:
                value = last.value if last.state == TrialState.COMPLETE else None
                found.append(
                    create_trial(
                        state=last.state, value=value, params=last.user_attrs["point"],
                        distributions=self.search.distributions, intermediate_values=last.intermediate_values,
                    )
                )  # fmt: skip
        return found

    def _result(self, run: Run) -> History | None:
        if run.path not in self._kept and (found := run.kept()) is not None:
            self._kept[run.path] = found
            run.describe()
        return self._kept.get(run.path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with filelock.FileLock(self.search.folder / "lock", timeout=PATIENCE):
                yield
        except filelock.Timeout:
            raise StudyError(f"{self.search.folder}: another process has held its lock for {PATIENCE:.0f} s") from None

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """An error of the disk names the journal, where it names no file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise LedgerError(self._line((str(error).splitlines() or [type(error).__name__])[0][:80])) from None

    def _line(self, reason: str) -> str:
        return f"{self.path}: damaged ({reason}); remove it to go on: finished runs are in the store and stay"


def _error(history: History) -> float:
    return math.inf if history.failed else float(history.epochs[ERROR].iloc[-1])


def _mend(path: Path) -> None:
    """Remove a last line without an end."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
