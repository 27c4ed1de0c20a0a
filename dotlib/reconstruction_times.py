"""How long one reconstruction takes, by method: one phantom at a time, as a recording comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch

from .config import Lift
from .data import classical, lifts
from .data.split import NAMES
from .reconstruction_sets import Seen
from .reconstruction_tuning import Setting

COUNT = 4  # phantoms


def times(seen: Seen, settings: Mapping[str, Setting], network: Callable[[int], object] | None) -> pd.DataFrame:
    """Rows of step, seconds, n, threads: medians over the first test phantoms; `network` answers the n-th's lift.

    Every reconstruction starts with the fit; the network needs the lift besides.
    """
    data, taken = seen.data, {}
    draws = lifts.Lifts(seen.view.data, Lift(), data.path, data.labels)
    for n, i in enumerate(np.flatnonzero(data.labels == NAMES.index("test"))[:COUNT]):
        place = draws.scenes(int(i), 1, [0], "cpu")[0]
        fit = _clocked(taken, "fit", lambda place=place: lifts.fitted({0: place}, 0)[0])
        _clocked(taken, "lift", lambda place=place, fit=fit: lifts.channels(Lift(), place, fit))
        for method, setting in settings.items():
            _clocked(taken, method, lambda m=method, s=setting, p=place, f=fit: classical.reconstruct(p, f, m, *s))
        if network is not None:
            _clocked(taken, "network", lambda n=n: network(n))
    rows = [{"step": name, "seconds": np.median(seconds), "n": len(seconds)} for name, seconds in taken.items()]
    return pd.DataFrame(rows).assign(threads=torch.get_num_threads())


def _clocked(taken: dict[str, list[float]], name: str, work: Callable):
    start = time.perf_counter()
    found = work()
    taken.setdefault(name, []).append(time.perf_counter() - start)
    return found
