"""Finished runs judged beyond their own test set: on other families, in other voxels, through noise.

What is computed is kept, in each run's folder; the table of a profile's runs can be committed to results/.
"""

import dataclasses
import hashlib
import io
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import checkpoint, improvements, inference, machine, study, trivial
from . import config as configuration
from .config import ConfigError, Data
from .data import dataset, phantoms
from .judged_records import COLUMNS, Judged, load
from .judged_scores import TRAINING, scores, summary, training
from .judged_sets import Phantoms, sets
from .models.skips import resample
from .trainer import History

VERSION = "1"  # raised by hand whenever the same weights and phantoms would give other numbers
NAME, STUDIES = "4.5-judged", ("4.5-roadmap", "4.5-data", "4.5-best")
# results/PLAN.md: the roadmap's arms on two families, one arm a training family on all of them
EVERYWHERE = ("stage1-onecycle", *improvements.FAMILIES)
TWO = ("default", "small")
# of which a run that diverged has the worst value: the highest, the lowest
ERRORS = ("nrmse", "log_nrmse", "rmse", "legacy_rmse", "nrmse_p95", "background_noise", "abs_bias")
SCORES = ("ssim", "legacy_ssim", "legacy_psnr", "skill", "skill_p50", "crc_inside", "contrast_passed")

Key = tuple[str, int]  # arm, seed
Predictor = Callable[[Tensor, np.ndarray], Tensor]  # of (what is seen, tables) -> predicted volumes, mm^-1


def judge(
    predictors: Mapping[Hashable, Predictor], on: Phantoms, device: str = "cpu", report: Callable = lambda n: None
) -> dict[Hashable, pd.DataFrame]:
    """Each predictor on one set: rows of metric, channel, value, n. `report` is told of phantoms that were judged."""
    found: dict[Hashable, list] = {key: [] for key in predictors}
    with torch.no_grad():
        for part in on.parts(device):
            twins = phantoms.without_inclusions(part.tables)
            for key, predictor in predictors.items():
                pred, twin = predictor(part.seen, part.tables), predictor(part.seen_twin, twins)
                found[key].append({name: value.cpu() for name, value in scores(pred, twin, part).items()})
                report(len(part.tables))
    return {
        key: summary({name: torch.cat([row[name] for row in rows]) for name in rows[0]}) for key, rows in found.items()
    }


def ellipsoid_mean(tables: np.ndarray) -> np.ndarray:
    """The tables without inclusions, and with the same healthy values in all."""
    out = phantoms.without_inclusions(tables)
    out[:, 0, [phantoms.MUA, phantoms.MUSP]] = trivial.MEAN_TISSUE
    return out


def predictors(on: Phantoms, mean: Tensor, device: str) -> dict[str, Predictor]:
    """The predictors of `trivial` for one set, ellipsoids in the set's own voxels; `mean`: the base's mean volume."""
    zeros, average, same, own = trivial.PREDICTORS
    mean = resample(mean.to(device)[None], on.grid, "trilinear")
    return {
        zeros: lambda seen, tables: torch.zeros_like(seen),
        average: lambda seen, tables: mean.expand_as(seen),
        same: lambda seen, tables: on.volumes(ellipsoid_mean(tables), device),
        own: lambda seen, tables: on.volumes(phantoms.without_inclusions(tables), device),
    }


def network(run: study.Run, device: str) -> Predictor:
    """A finished run's network, by its last checkpoint, in the precision that it was trained in.

    It sees volumes of any grid on its own, and its answer goes back: means over voxels, or linear between centres.
    """
    model = inference.trained(run.config, run.path, on=device)
    dtype, grid = machine.precision(run.config.training.precision, device), run.config.data.grid

    def predictor(seen: Tensor, tables: np.ndarray) -> Tensor:
        answer = inference.predict(model, resample(seen, grid, "trilinear"), dtype)
        return resample(answer, seen.shape[-1], "trilinear")

    return predictor


def weights_of(run: study.Run) -> str:
    """The digest at the end of a run's last checkpoint."""
    with (run.path / "last.pt").open("rb") as file:
        file.seek(-checkpoint.DIGEST, os.SEEK_END)
        return file.read().decode(errors="replace")


def kept(folder: Path, who: str, on: Phantoms) -> Path:
    """The file of a judgement below `folder`; `who`: what tells weights, or the trivial predictors' mean, apart."""
    name = hashlib.sha256(f"{VERSION} {on.digest} {who}".encode()).hexdigest()[:12]
    return folder / "judged" / f"{on.name.replace(' ', '-').replace('%', 'percent')}-{name}.csv"


def _whole(path: Path) -> bytes | None:
    """The table of a kept judgement, whose last line is its digest; None where it is missing or damaged."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    text, digest = raw[: -checkpoint.DIGEST], raw[-checkpoint.DIGEST :]
    return text if hashlib.sha256(text).hexdigest().encode() == digest else None


def _read(path: Path) -> pd.DataFrame:
    # numbers by way of text: parsers of CSV may lose their last bit
    return pd.read_csv(io.BytesIO(_whole(path)), dtype={"value": str}, keep_default_na=False).astype({"value": float})


def _write(path: Path, found: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = found.to_csv(index=False, na_rep="nan").encode()
    checkpoint.write(path, text + hashlib.sha256(text).hexdigest().encode())


def asked(arm: str, name: str) -> bool:
    """Whether an arm is judged on a set: some arms on every one, the others on two (results/PLAN.md)."""
    return arm in EVERYWHERE or name in TWO


def table(finished: Mapping[Key, study.Run], base: Data, store: Path, earlier: Judged | None = None) -> pd.DataFrame:
    """The judgements of finished runs and of the trivial predictors, in the columns of `Judged.table`.

    What is not cached is computed, all runs on one set at a time; the runs of `earlier` are taken over. Raises
    StudyError for a run whose own test phantoms are not those of `base`, and for an `earlier` of other sets.
    """
    data, histories = dataset.load(base), {key: run.result() for key, run in finished.items()}
    _require_same(histories, data.part_digest("test"))
    every, whole = sets(base, data), [key for key in finished if not histories[key].failed]
    trivials = {name: kept(store, f"trivial {data.digest}", on) for name, on in every.items()}
    files = {}
    for key in whole:
        folder, who = finished[key].path, weights_of(finished[key])
        files |= {(key, name): kept(folder, who, on) for name, on in every.items() if asked(key[0], name)}
    _compute(every, data, trivials, {path: (finished[key], name) for (key, name), path in files.items()})
    frames = [_read(path).assign(seed=0, set=name) for name, path in trivials.items()]
    frames += [_read(path).assign(arm=arm, seed=seed, set=name) for ((arm, seed), name), path in files.items()]
    frames += [training(histories[key]).assign(arm=key[0], seed=key[1], set=TRAINING) for key in whole]
    failed = [key for key in finished if key not in whole]
    if earlier is not None:
        lost = earlier.runs["failed"] != ""
        _require_same_sets(pd.concat(frames), earlier)
        frames.append(earlier.table.merge(earlier.runs.loc[~lost, ["arm", "seed"]]))
        failed += list(earlier.runs.loc[lost, ["arm", "seed"]].itertuples(index=False, name=None))
    good = pd.concat(frames, ignore_index=True)[COLUMNS]
    return pd.concat([good, *(_worst(good, *key) for key in failed)], ignore_index=True)


def _require_same_sets(found: pd.DataFrame, earlier: Judged) -> None:
    """The trivial predictors tell whether two tables rest on the same sets and the same metrics: those sets on which a
    run of `earlier` is judged."""
    keys = ["arm", "set", "metric", "channel"]
    arms = earlier.runs.loc[earlier.runs["failed"] == "", "arm"].unique()
    names = [n for n in {*found["set"], *earlier.table["set"]} if any(asked(arm, n) for arm in arms)]
    plain = (t[t["arm"].isin(trivial.PREDICTORS) & t["set"].isin(names)] for t in (found, earlier.table))
    now, then = (t.set_index(keys)["value"] for t in plain)
    same = set(now.index) == set(then.index) and np.allclose(now, then[now.index], rtol=1e-4, atol=1e-6, equal_nan=True)
    if not same:
        raise study.StudyError(f"{earlier.source}: judged on other sets than these runs: remove it to record anew")


def _compute(
    every: Mapping[str, Phantoms], data: dataset.Dataset, trivials: Mapping[str, Path], runs: Mapping[Path, tuple]
) -> None:
    """Judge what has no file yet: `trivials` by set, and runs, (run, set) by file."""
    device = machine.device()
    lacking = {name: path for name, path in trivials.items() if _whole(path) is None}
    wanted = {path: work for path, work in runs.items() if _whole(path) is None}
    total = sum(len(every[name]) for name in [*lacking] * len(trivial.PREDICTORS) + [of for _, of in wanted.values()])
    if not total:
        return
    machine.prepare(device, torch.float32)
    mean = data.mean("train") if lacking else None
    folders = {run.path: run for run, _ in wanted.values()}
    networks = {folder: network(run, device) for folder, run in folders.items()}
    with tqdm(total=total, desc="judged", unit="phantom", file=sys.stderr) as bar:
        for name, on in every.items():
            mine = {path: networks[run.path] for path, (run, of) in wanted.items() if of == name}
            plain = predictors(on, mean, device) if name in lacking else {}
            found = judge(mine | plain, on, device, bar.update) if mine or plain else {}
            for path in mine:
                _write(path, found[path])
            if plain:
                _write(lacking[name], pd.concat([found[arm].assign(arm=arm) for arm in plain]))


def _require_same(histories: Mapping[Key, History], own: str) -> None:
    for (arm, seed), history in histories.items():
        theirs = history.info.get("test", own)
        if theirs != own:
            raise study.StudyError(f"{arm}, seed {seed}: judged on test phantoms {theirs}, the profile has {own}")


def _worst(good: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """A run that diverged: of `ERRORS` and `SCORES` the worst value among all runs on the same set, nothing else."""
    runs = good[~good["arm"].isin(trivial.PREDICTORS) & (good["set"] != TRAINING)]
    runs = runs[[asked(arm, name) for name in runs["set"]]]
    groups = runs.groupby(["set", "metric", "channel"], as_index=False, sort=False)
    worst = groups.agg(value=("value", "max"), low=("value", "min"), n=("n", "max"))
    worst["value"] = worst["value"].where(
        worst["metric"].isin(ERRORS), worst["low"].where(worst["metric"].isin(SCORES))
    )
    return worst.assign(arm=arm, seed=seed)[COLUMNS]


def members(profile: str, store: Path) -> dict[Key, study.Run]:
    """The runs that are judged, by (arm, seed)."""
    return {key: run for name in STUDIES for key, run in study.members(name, profile, 0, store).items()}


def completed(wanted: Mapping[Key, study.Run]) -> dict[Key, study.Run]:
    """Those of the runs that came to an end, or diverged."""
    return {key: run for key, run in wanted.items() if run.done()}


def elsewhere(earlier: Judged, wanted: Mapping[Key, study.Run]) -> Judged:
    """The runs of a record that `study.elsewhere` finds in it."""
    return dataclasses.replace(earlier, runs=study.elsewhere(earlier.runs, dict(wanted)))


def judged(finished: Mapping[Key, study.Run], profile: str, store: Path, earlier: Judged | None = None) -> Judged:
    """The judgements of finished runs, and of the runs of `earlier`. Raises StudyError where none is finished."""
    if not finished:
        raise study.StudyError(
            f"no run of {', '.join(STUDIES)} is complete in profile {profile}; `dotlib study` does it"
        )
    rows = []
    for (arm, seed), run in finished.items():
        history = run.result()
        row = {
            "arm": arm,
            "seed": seed,
            "failed": history.failed,
            "config": history.info["config_digest"],
            "key": run.data,
        }
        rows.append(row | {"code": history.info["code"], "test": history.info.get("test", "unknown")})
    base, runs = configuration.profile(profile).base.data, pd.DataFrame(rows)
    if earlier is not None:
        runs = pd.concat([runs, earlier.runs], ignore_index=True)
    return Judged(table(finished, base, store, earlier), runs, profile, "runs/")


def evidence(profile: str, store: Path | None, folder: Path) -> Judged | None:
    """The judged runs: from the run store, if any, where the studies are complete; else computed, full on a GPU; else
    from `folder`; else None."""
    found = None if store is None else _here(profile, store)
    return load(folder / NAME) if found is None and (folder / NAME).is_dir() else found


def _here(profile: str, store: Path) -> Judged | None:
    """What is judged of the studies, where they are finished or can be computed here."""
    try:
        wanted = members(profile, store)
    except ConfigError:
        wanted = {}  # an arm does not fit this profile
    if profile == "full" and torch.cuda.is_available():
        for name in STUDIES:
            study.results(name, profile, 0, store)
    finished = completed(wanted)
    return judged(finished, profile, store) if wanted and len(finished) == len(wanted) else None
