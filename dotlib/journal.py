"""What a run has gone through: its epochs and steps, and the checkpoints that let it continue."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, provenance
from .config import Config

SHARE = 100  # saving may take a hundredth of the time,
LONGEST = 300.0  # but is put off by so many seconds at most


class Journal:
    """Epochs and steps of a run, read from `folder`/last.pt where it is a continued one.

    `parts` have state_dict and load_state_dict; `epochs` holds a row per epoch, `steps` a tuple per step, `micro` the
    micro-batch that the run was begun with, `earlier` the code and torch of processes that worked on it with others.
    """

    def __init__(self, config: Config, folder: Path, parts: dict[str, Any], save_every: float, on: str):
        self.config, self.folder, self.parts, self.save_every = config, folder, parts, save_every
        self.epochs: list[dict] = []
        self.steps: list[tuple] = []
        self.micro: int | None = None
        self.earlier: list[dict] = []
        self.maker = {"code": provenance.code_digest(), "torch": str(torch.__version__)} | provenance.commit()
        self.saved, self.wait = time.perf_counter(), save_every
        self.best: dict[str, Tensor] | None = None
        self.written: int | None = None  # the epoch that best.pt is of
        for part in (*folder.glob(".*.pt.*"), *folder.glob(".progress.json.*")):  # of a run that was killed as it wrote
            part.unlink()
        if (path := folder / "last.pt").exists():
            state = checkpoint.load(path, config.digest(), on)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.epochs, self.steps, self.micro = state["epochs"], state["steps"], state["micro"]
            self.earlier = [maker for maker in state.get("makers", []) if maker != self.maker]
            self.best = state.get("best")  # runs begun by earlier code have it in best.pt alone
            self._save_best()

    @property
    def losses(self) -> list[float]:
        """The validation losses so far."""
        return [row["validation_loss"] for row in self.epochs]

    def best_epoch(self) -> int:
        return min(range(len(self.epochs)), key=self.losses.__getitem__)

    def ended(self) -> bool:
        """All epochs are done, or `patience` of them have brought no better validation loss."""
        patience, done = self.config.training.patience, len(self.epochs)
        return done >= self.config.training.epochs or bool(
            patience and done and done - 1 - self.best_epoch() >= patience
        )

    def keep(self, row: dict, judged: nn.Module, now: bool = False) -> None:
        """Take in an epoch with the weights that it is judged by; write the checkpoints that are due.

        They are last.pt, where `save_every` seconds have passed since the last time (0: after each epoch), or more,
        lest saving takes over a hundredth of the time, or `now`, or where the run has ended; then best.pt, whose
        weights last.pt holds too, lest they be of epochs that a kill in between has undone; and milestones.
        """
        self.epochs.append(row)
        done = len(self.epochs)
        if self.best_epoch() == done - 1:
            self.best = weights(judged)
        if done in self.config.training.milestones:
            self._save(f"epoch-{done}.pt", {"judged": weights(judged)})
        start = time.perf_counter()
        if now or start - self.saved >= self.wait or self.ended():
            state = {name: part.state_dict() for name, part in self.parts.items()} | {"judged": judged.state_dict()}
            state |= {"epochs": self.epochs, "steps": self.steps, "micro": self.micro, "best": self.best}
            state |= {"makers": [*self.earlier, self.maker]}
            self._save("last.pt", state)
            self._save_best()
            self.saved = time.perf_counter()
            slow = min(SHARE * (self.saved - start), LONGEST)
            self.wait = max(self.save_every, slow) if self.save_every else 0.0
        self._progress(row)

    def samples_per_second(self) -> float:
        """Over the epochs that ended well; NaN before the first."""
        seconds = sum(row["seconds"] for row in self.epochs)
        return sum(row["samples"] for row in self.epochs) / seconds if seconds else math.nan

    def good(self) -> str:
        """The last good checkpoint, in words."""
        path = self.folder / "last.pt"
        if not path.exists():
            return "no checkpoint yet"
        return f"last good checkpoint: epoch {len(checkpoint.load(path, self.config.digest())['epochs']) - 1}"

    def _save_best(self) -> None:
        if self.best and self.written != self.best_epoch():
            self._save("best.pt", {"judged": self.best})
            self.written = self.best_epoch()

    def _save(self, name: str, state: dict) -> None:
        checkpoint.save(self.folder / name, state, self.config.digest(), self.config.model_dump_json())

    def _progress(self, row: dict) -> None:
        epochs = self.config.training.epochs
        line = {"epoch": row["epoch"] + 1, "epochs": epochs, "samples_per_second": row["samples"] / row["seconds"]}
        line |= {"seconds_left": (epochs - row["epoch"] - 1) * row["seconds"]}
        checkpoint.write(self.folder / "progress.json", json.dumps(line).encode(), durable=False)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers as they are now."""
    return {name: value.clone() for name, value in model.state_dict().items()}
