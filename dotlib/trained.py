"""The networks that this project has trained, for recordings of somebody else."""

from pathlib import Path

from . import study
from .config import PROFILES, ConfigError
from .reconstructions import NETWORK, SHORT

# studies and arms that reconstruct, the longest training first
PREFERRED = (
    ("4.6-more", "reconstruct-longer"), ("4.6-more", "reconstruct-more"), ("4.6-more", NETWORK), ("4.6-shown", SHORT),
)  # fmt: skip


def checkpoints(store: Path) -> list[Path]:
    """Checkpoints of the finished seeds of one arm: of the largest profile, and there of the longest training.

    Raises ConfigError where no network that reconstructs is finished.
    """
    for profile in reversed(PROFILES):
        for name, arm in PREFERRED:
            runs = study.members(name, profile, 0, store)
            if found := [run.folder() / "last.pt" for key, run in runs.items() if key[0] == arm and run.done()]:
                return found
    raise ConfigError(f"{store}: no network that reconstructs is finished; `dotlib study 4.6-shown` trains one")
