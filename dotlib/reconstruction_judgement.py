"""Finished networks beside the classical reconstructions and the controls, on every set of `reconstruction_sets`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import config as configuration
from . import inference, machine, reconstruction_tuning, study
from .config import CHANNELS, ConfigError
from .data import classical, lifts, samples
from .evaluation import homogeneous
from .judgement import weights_of
from .reconstruction_limits import limits
from .reconstruction_records import COLUMNS, TRUTH, Reconstructed, load, save
from .reconstruction_scores import calibration, facts, inflation, lesions, scores, twins
from .reconstruction_sets import FRESH, HOME, THRESHOLDS, TUMOUR_FREE, Seen, View, union, views
from .reconstruction_sets import load as load_set
from .reconstruction_times import times
from .reconstruction_tuning import Setting
from .reconstructions import EVERYWHERE, MORE, NETWORK, ON_PATTERNS, QUICK, SHORT, STUDIES

VERSION = "1"  # raised by hand whenever the same weights and sets would give other numbers
NAME = "4.6-judged"
FITTED, BEST, SHUFFLED, ENSEMBLE = (
    "fitted homogeneous", "best homogeneous", "measurements shuffled", "ensemble",
)  # fmt: skip
ENSEMBLES = {NETWORK: ENSEMBLE} | {arm: f"{ENSEMBLE} of {arm}" for arm in MORE}  # mean volumes of the seeds
LIFTED = "Tikhonov as lifted"  # lambda and length of the lift: what every set has without another solution
METHODS: dict[classical.Method, str] = {
    "tikhonov": "Tikhonov", "gaussian": "Gauss-Newton", "tv": "Gauss-Newton, total variation",
}  # fmt: skip
COMPARED = (HOME, THRESHOLDS)  # where tuned classical methods are computed, and on the sets of coverage; tv at home
TISSUE = CHANNELS.index("tissue")
LESIONS = ["arm", "seed", "channel", "threshold", "recall", "false_lesions", "operating"]
RUN = ["arm", "seed", "failed", "config", "key", "code", "test", "parameters", "samples_seen"]

Key = tuple[str, int]  # arm, seed


class Judge:
    """The methods of a profile: trained networks by (arm, seed), and classical ones by their settings."""

    def __init__(self, runs: Mapping[Key, study.Run], settings: Mapping[str, Setting]):
        self.settings, self.runs, self.device = settings, runs, machine.device()
        machine.prepare(self.device, torch.float32)
        self.models = {key: inference.trained(r.config, r.folder(), on=self.device) for key, r in runs.items()}

    def asked(self, view: View) -> list[Key]:
        """The networks that are judged on a set: all at home, elsewhere those of `EVERYWHERE` and of its group."""
        if view.group == HOME:
            return list(self.runs)
        of_group = ON_PATTERNS if view.group == "pattern" or view.name == FRESH else ()
        return [key for key in self.runs if key[0] in (*EVERYWHERE, *of_group)]

    def own(self) -> list[Key]:
        """The seeds of the network that stands for the others: `reconstruct`, else the short one."""
        return [key for key in self.runs if key[0] == NETWORK] or [key for key in self.runs if key[0] == SHORT]

    def network(self, key: Key, seen: Tensor) -> Tensor:
        """What a network makes of what it sees, (P, 2, D, H, W), in the precision of its training."""
        dtype = machine.precision(self.runs[key].config.training.precision, self.device)
        return inference.predict(self.models[key], seen.to(self.device), dtype).cpu()

    def shown(self, key: Key, seen: Seen, part: str = "test") -> Tensor:
        """What a network sees of a set: at home the stored draw of its own kind of lift."""
        if seen.view.group == HOME:
            return samples.of(self.runs[key].config, seen.data, part).frozen()
        return samples.joined(seen.lifted, seen.fraction)

    def one(self, seen: Seen) -> Callable[[int], Tensor] | None:
        """The first seed's network on the n-th phantom of a set alone; None where there is none."""
        if not self.own():
            return None
        key = self.own()[0]
        shown = self.shown(key, seen)
        return lambda n: self.network(key, shown[n : n + 1])

    def volumes(self, seen: Seen) -> dict[Key, Tensor]:
        """Every method's volumes of a set by (arm, seed), before they are clamped."""
        found: dict[Key, Tensor] = {(FITTED, 0): seen.fitted, (LIFTED, 0): as_lifted(seen)}
        if seen.view.name in COMPARED or seen.view.group == "coverage":
            wanted = [method for method in self.settings if method != "tv" or seen.view.group == HOME]
            found |= {(METHODS[method], 0): self.classical(method, seen) for method in wanted}
        found |= {key: self.network(key, self.shown(key, seen)) for key in self.asked(seen.view)}
        if seen.view.group != HOME:
            return found
        found[BEST, 0] = homogeneous(seen.truth, seen.fraction.float())
        for key in self.own():
            found[SHUFFLED, key[1]] = self.network(key, shuffled(self.shown(key, seen)))
        for arm, name in ENSEMBLES.items():
            seeds = self.own() if arm == NETWORK else [key for key in self.runs if key[0] == arm]
            if len(seeds) > 1:
                found[name, 0] = torch.stack([found[key] for key in seeds]).mean(0)
        return found

    def classical(self, method: classical.Method, seen: Seen) -> Tensor:
        """Volumes of one method, by its setting."""
        view, (regularisation, length) = seen.view, self.settings[method]
        folder = seen.data.path.parent
        coarse = classical.volumes(view.data, view.lift, method, regularisation, "test", None, length, folder)
        return classical.refined(coarse, seen.fraction)

    def calibrated(self, seen: Seen, found: Mapping[Key, Tensor]) -> pd.DataFrame:
        """The ensemble's sd at home against its error: as it is, and by the factor that validation asks for."""
        part, own = "validation", self.own()
        if len(own) < 2:
            return pd.DataFrame(columns=["scaled", "scale", "part", "channel", "bin", "n", "sd", "rmse", "beyond"])
        asked = torch.stack([self.network(key, self.shown(key, seen, part)) for key in own])
        scale, frames = inflation(asked, seen.data.volumes(part), seen.data.tissue(part)), []
        for scaled, factor in ((False, torch.ones_like(scale)), (True, scale)):
            rows = calibration(torch.stack([found[key] for key in own]), seen, factor)
            factors = dict(zip(inference.CHANNELS, factor.tolist(), strict=True))
            frames.append(rows.assign(scaled=scaled, scale=rows["channel"].map(factors)))
        return pd.concat(frames, ignore_index=True)


def as_lifted(seen: Seen) -> Tensor:
    """Tikhonov's volumes by the lift's own regularisation and prior."""
    x, level = seen.lifted[:, :2].float(), seen.lifted[:, -2:].float()
    return classical.refined(level * (1 + x).clamp_min(0), seen.fraction)


def shuffled(shown: Tensor) -> Tensor:
    """What a network sees with the measurements of the phantom before, and its own tissue."""
    other, own = shown.roll(1, 0), [TISSUE, *range(len(CHANNELS), shown.shape[1])]
    other[:, own] = shown[:, own]
    return other


def members(profile: str, seeds: int, store: Path) -> dict[Key, study.Run]:
    """The runs that are judged, by (arm, seed); 0 seeds: each study's own number."""
    return {key: run for name in STUDIES for key, run in study.members(name, profile, seeds, store).items()}


def judged(
    finished: Mapping[Key, study.Run], profile: str, settings: Mapping[str, Setting],
    names: Collection[str] | None = None, folder: Path | None = None,
) -> Reconstructed:  # fmt: skip
    """The judgements of finished runs and of all other methods on every set, or those of `names`, home among them.

    With a setting of Gauss-Newton also what the readings tell at most, at home.
    """
    base = configuration.profile(profile).base.data
    judge = Judge({key: run for key, run in finished.items() if not run.result().failed}, settings)
    every = [one for one in views(base).values() if names is None or one.name in names]
    seen = {one.name: load_set(one, folder) for one in tqdm(every, desc="sets", file=sys.stderr)}
    around = [one.covered for one in seen.values() if one.view.group == "coverage"]
    values, kept = [], {}
    for name, one in tqdm(seen.items(), desc="judged", file=sys.stderr):
        found = judge.volumes(one)
        frames = {key: scores(v, one, union(around) if one.view.group == "coverage" else None)
                  for key, v in found.items()} | {(TRUTH, 0): facts(one)}  # fmt: skip
        values += [rows.assign(arm=arm, seed=seed, set=name) for (arm, seed), rows in frames.items()]
        if name in (HOME, FRESH, TUMOUR_FREE, THRESHOLDS):
            kept[name] = found
    if "gaussian" in settings:
        length = settings["gaussian"][1]
        values.append(limits(seen[HOME], length, judge.device).assign(arm=TRUTH, seed=0, set=HOME))
    if FRESH in kept and TUMOUR_FREE in kept:
        for key in [key for key in kept[FRESH] if key in kept[TUMOUR_FREE]]:  # not the networks of other patterns
            rows = twins(kept[FRESH][key], kept[TUMOUR_FREE][key], seen[FRESH])
            values.append(rows.assign(arm=key[0], seed=key[1], set=FRESH))
    found = []
    for key, volume in kept.get(THRESHOLDS, {}).items():
        rows = lesions(kept[HOME][key], seen[HOME], volume, seen[THRESHOLDS])
        found.append(rows.assign(arm=key[0], seed=key[1]))
    return Reconstructed(
        pd.concat(values, ignore_index=True)[COLUMNS],
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=LESIONS),
        judge.calibrated(seen[HOME], kept[HOME]),
        times(seen[HOME], settings, judge.one(seen[HOME])),
        pd.DataFrame([_row(key, run) for key, run in finished.items()], columns=RUN),
        profile,
        "runs/",
    )


def _row(key: Key, run: study.Run) -> dict:
    info, failed = run.result().info, run.result().failed
    row = {"arm": key[0], "seed": key[1], "failed": failed, "config": info["config_digest"], "key": run.data}
    return row | {name: info.get(name, "") for name in ("code", "test", "parameters", "samples_seen")}


def everywhere(
    finished: Mapping[Key, study.Run], profile: str, settings: Mapping[str, Setting], store: Path
) -> Reconstructed:
    """What `judged` says of finished runs on every set, kept in the run store: it takes an hour."""
    who = {f"{arm} {seed}": run.result().failed or weights_of(run) for (arm, seed), run in finished.items()}
    held = [VERSION, classical.VERSION, lifts.key(), profile, dict(settings), who]
    name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:12]
    folder = store / "judged" / f"{NAME}-{name}"
    if not (folder / "about.json").exists():  # which is written last
        save(judged(finished, profile, settings), folder)
    return replace(load(folder), source="runs/")


def evidence(profile: str, seeds: int, store: Path | None, folder: Path) -> Reconstructed | None:
    """All judged runs: from the run store, if any, where every study is complete; else computed, full on a GPU; else
    from `folder`; else None."""
    found = None if store is None else _here(profile, seeds, store)
    return load(folder / NAME) if found is None and (folder / NAME).is_dir() else found


def _here(profile: str, seeds: int, store: Path) -> Reconstructed | None:
    """What is judged of the studies, where they are finished or can be computed here."""
    try:
        wanted = members(profile, seeds, store)
    except ConfigError:
        wanted = {}  # an arm does not fit this profile
    if profile == "full" and torch.cuda.is_available():
        for name in STUDIES:
            study.results(name, profile, seeds, store)
    if wanted and all(run.done() for run in wanted.values()):
        return everywhere(wanted, profile, reconstruction_tuning.recorded(), store)
    return None


def shown(profile: str, seeds: int, store: Path | None) -> Reconstructed | None:
    """The runs that a notebook trains itself, at home alone, beside Tikhonov as lifted; None without a store, and where
    it cannot: the full profile without a GPU."""
    if store is None:
        return None
    try:
        for name in QUICK:
            study.results(name, profile, seeds, store)
    except ConfigError:
        return None
    runs = {key: run for name in QUICK for key, run in study.members(name, profile, seeds, store).items()}
    return judged(runs, profile, {}, {HOME})
