"""Judged reconstructions whose numbers are given by hand: records for the tables of section 4.6."""

import numpy as np
import pandas as pd

from dotlib.reconstruction_judgement import LESIONS, RUN
from dotlib.reconstruction_records import COLUMNS, TRUTH, Reconstructed
from dotlib.reconstruction_scores import BINS
from dotlib.reconstruction_sets import HOME
from dotlib.reconstructions import ARMS

CALIBRATION = ["scaled", "scale", "part", "channel", "bin", "n", "sd", "rmse", "beyond"]


def rows(arm, on, metric, values, channel="mua", seeds=None):
    """Values (R seeds, P phantoms) or (R, P, K inclusions) of one method, set and metric; a vector is of one seed."""
    values = np.asarray(values, float)
    values = values[None] if values.ndim == 1 else values
    seeds = range(len(values)) if seeds is None else seeds
    return [
        [arm, seeds[place[0]], on, metric, channel, place[1], place[2] if len(place) > 2 else -1, value]
        for place, value in np.ndenumerate(values)
    ]  # fmt: skip


def errors(arm, values, on=HOME, seeds=None):
    """The same nrmse of mua in both parts of the tissue."""
    both = ("nrmse_covered", "nrmse")
    return [row for metric in both for row in rows(arm, on, metric, values, seeds=seeds)]


def places(**facts):
    """What is true of the inclusions at home, each fact (P, K); NaN where there is none."""
    return [row for name, values in facts.items() for row in rows(TRUTH, HOME, name, [values])]


def lesion(arm, seed, threshold, recall, false_lesions, operating=False, channel="mua"):
    return [arm, seed, channel, threshold, recall, false_lesions, operating]


def bins(part, channel, sd, rmse, beyond, scale=None, n=10):
    """Bins of calibration; without `scale` the sd is as it is."""
    lists = [np.broadcast_to(np.asarray(x, float), BINS) for x in (n, sd, rmse, beyond)]
    scaled = scale is not None
    return [[scaled, scale if scaled else 1.0, part, channel, b, *row]
            for b, row in enumerate(zip(*lists, strict=True))]  # fmt: skip


def judged(*values, lesions=(), calibration=(), times=(), profile="quick"):
    """A record of lists of `rows`, of `lesion`s, of lists of `bins`, and of times (step, seconds)."""
    table = pd.DataFrame([row for part in values for row in part], columns=COLUMNS)
    keys = table.loc[table["arm"].isin(ARMS), ["arm", "seed"]].drop_duplicates()
    runs = [[arm, seed, "", "c", "k", "d", "t", 7, 48] for arm, seed in keys.itertuples(index=False)]
    return Reconstructed(
        table,
        pd.DataFrame(list(lesions), columns=LESIONS),
        pd.DataFrame([row for part in calibration for row in part], columns=CALIBRATION),
        pd.DataFrame([[step, seconds, 4, 2] for step, seconds in times], columns=["step", "seconds", "n", "threads"]),
        pd.DataFrame(runs, columns=RUN), profile, "made up",
    )  # fmt: skip
