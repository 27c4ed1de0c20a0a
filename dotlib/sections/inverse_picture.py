"""Section 4.6: one test phantom beside what each method makes of its readings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import config as configuration
from .. import study
from ..config import Lift
from ..data import classical, lifts, phantoms
from ..data.probe import Probe
from ..data.split import NAMES
from ..reconstruction_judgement import METHODS, Judge
from ..reconstruction_sets import HOME, Seen, load, views
from ..reconstruction_tuning import Setting
from ..reconstructions import QUICK, SHORT


def example(seen: Seen) -> tuple[int, int, int]:
    """A test phantom, its inclusion, and the y index of the plane through that one's centre.

    Of all inclusions with a radius of at least 8 mm the one that is covered most.
    """
    score = seen.share.nan_to_num(0) * (seen.radius.nan_to_num(0) >= 8)
    phantom, inclusion = divmod(int(score.flatten().argmax()), score.shape[1])
    y = seen.data.part("test")[phantom, 1 + inclusion, phantoms.CENTRE][1]
    plane = int(np.clip((y + phantoms.CUBE / 2) // seen.data.voxel, 0, seen.data.grid - 1))
    return phantom, inclusion, plane


@dataclass(frozen=True)
class Shown:
    """A test phantom (6, 13) with its probe: truth and the methods' volumes by name, (2, D, H, W) in mm^-1.

    `sd`: over a network's seeds, where there are several; `plane`: the y index to look at.
    """

    phantom: np.ndarray
    probe: Probe
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    plane: int


def beside(profile: str, seeds: int, store: Path, settings: Mapping[str, Setting]) -> Shown:
    """The example and what each method makes of its readings; of a network with several seeds, their mean.

    The classical methods reconstruct here, from the pairs and noise that the networks see.
    """
    seen = load(views(configuration.profile(profile).base.data)[HOME])
    phantom, _, plane = example(seen)
    runs = {key: run for name in QUICK for key, run in study.members(name, profile, seeds, store).items()}
    judge, chosen = Judge(runs, settings), slice(phantom, phantom + 1)
    index = int(np.flatnonzero(seen.data.labels == NAMES.index("test"))[phantom])
    draws = lifts.Lifts(seen.view.data, Lift(), seen.data.path, seen.data.labels)
    place = draws.scenes(index, 1, [0], "cpu")[0]
    fit, found, sd = lifts.fitted({0: place}, index)[0], {}, {}
    for arm in dict.fromkeys(arm for arm, _ in runs):
        name = "network" if arm == SHORT else "network without measurements"
        keys = [key for key in runs if key[0] == arm]
        volumes = torch.stack([judge.network(key, judge.shown(key, seen)[chosen]) for key in keys])
        found[name] = volumes.mean(0)
        if len(keys) > 1:
            sd[name] = volumes.std(0)[0].numpy()
    for method, setting in settings.items():
        coarse = classical.reconstruct(place, fit, method, *setting)
        found[METHODS[method]] = classical.refined(coarse[None], seen.fraction[chosen])
    measured = seen.data.measurements("test", "sources", "detectors", "pairs")
    probe = Probe(*(measured[name][phantom] for name in ("sources", "detectors", "pairs")))
    volumes = {name: v[0].clamp_min(0).numpy() for name, v in found.items()}
    return Shown(seen.data.part("test")[phantom], probe, seen.truth[phantom].numpy(), volumes, sd, plane)
