"""Section 4.6: one test phantom beside what each method makes of its readings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import config as configuration
from .. import study
from ..config import Lift
from ..data import classical, lifts, phantoms
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


def beside(profile: str, store: Path, settings: Mapping[str, Setting]) -> tuple[Tensor, dict[str, np.ndarray], int]:
    """Truth (2, D, H, W) of the example, the methods' volumes by name, in mm^-1, and the y index to look at.

    The classical methods reconstruct here, from the pairs and noise that the networks see.
    """
    seen = load(views(configuration.profile(profile).base.data)[HOME])
    phantom, _, plane = example(seen)
    runs = {key: run for name in QUICK for key, run in study.members(name, profile, 1, store).items()}
    judge, chosen = Judge(runs, settings), slice(phantom, phantom + 1)
    index = int(np.flatnonzero(seen.data.labels == NAMES.index("test"))[phantom])
    draws = lifts.Lifts(seen.view.data, Lift(), seen.data.path, seen.data.labels)
    place = draws.scenes(index, 1, [0], "cpu")[0]
    fit, found = lifts.fitted({0: place}, index)[0], {}
    for (arm, _), run in runs.items():
        name = "network" if arm == SHORT else "network without measurements"
        found[name] = judge.network((arm, run.config.seed), judge.shown((arm, run.config.seed), seen)[chosen])
    for method, setting in settings.items():
        coarse = classical.reconstruct(place, fit, method, *setting)
        found[METHODS[method]] = classical.refined(coarse[None], seen.fraction[chosen])
    return seen.truth[phantom], {name: v[0].clamp_min(0).numpy() for name, v in found.items()}, plane
