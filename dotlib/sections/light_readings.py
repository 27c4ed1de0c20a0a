"""What is read: noise against its target, sensitivity to the tissue, what a dataset holds, the limits in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..config import Measurements, Noise
from ..data import checks, noise, phantoms, store
from ..data.dataset import Dataset
from ..data.recording import medium
from ..data.split import NAMES
from ..physics import diffusion, green, jacobian
from .light import STREAM

RADIUS, MUA, MUSP = 27.5, 0.005, 0.98  # mm, mm^-1: the mean tissue, as a sphere
STEP = 1e-3  # relative, of central differences


def noise_study(phi: np.ndarray, pairs: np.ndarray, law: Noise, draws: int, seed: int = 0) -> pd.DataFrame:
    """Standard deviations over `draws` recordings of the same light, pair by pair, beside those that are stored.

    `phi` (P, M) is clean fluence, `pairs` (P, M, 2). Columns: phantom, brightness = A / Aref, log_amplitude and phase
    (deg) as measured, stored_log_amplitude and stored_phase (deg).
    """
    rows = []
    for p, (clean, wiring) in enumerate(zip(phi, pairs, strict=True)):
        rng = np.random.default_rng([STREAM, seed, p])
        recordings = [noise.measure(clean, -np.angle(clean), wiring, law, rng) for _ in range(draws)]
        amplitude, sigma = np.abs(clean), recordings[0][2]
        columns = {"phantom": p, "brightness": amplitude / np.quantile(amplitude, noise.QUANTILE)}
        columns |= {"log_amplitude": np.std([r[0] for r in recordings], 0, ddof=1)}
        columns |= {"phase": np.degrees(np.std([r[1] for r in recordings], 0, ddof=1))}
        columns |= {"stored_log_amplitude": sigma[:, 0], "stored_phase": np.degrees(sigma[:, 1])}
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def at_reference(study: pd.DataFrame, law: Noise) -> pd.DataFrame:
    """Noise at the reference amplitude beside its target.

    Read off a line through the brightest 1 % of each phantom's pairs, log over log.
    """
    bright = study[study["brightness"] >= study.groupby("phantom")["brightness"].transform("quantile", 0.99)]
    target = law.relative * np.sqrt(1 + law.floor)
    rows = []
    for name, column, scale, want in (
        ("sd of ln A, %", "log_amplitude", 100, target),
        ("sd of the phase, deg", "phase", 1, np.hypot(np.degrees(target), law.jitter)),
    ):
        row = {"at the reference amplitude": name, "target": scale * want}
        for label, source in (("measured", column), ("stored", "stored_" + column)):
            row[label] = scale * np.exp(np.polyfit(np.log(bright["brightness"]), np.log(bright[source]), 1)[1])
        rows.append(row | {"pairs": len(bright)})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Bananas:
    """Sensitivity of two pairs on the mean tissue, a sphere, in the plane through both optodes and the centre.

    `maps` (pair, 4, x, z), mm^-2 (phase: rad mm^-2), per mm^3 of tissue: ln A by mua, phase by mua, ln A by musp, phase
    by musp; `optodes` (pair, 2, 3) mm, source first.
    """

    maps: np.ndarray
    optodes: np.ndarray
    table: pd.DataFrame


def bananas(grid: int, m: Measurements, separations: tuple[float, float] = (12.0, 35.0)) -> Bananas:
    """The Jacobian of a short and a long separation, and what its sums are: mean paths of light (Arridge 1995)."""
    across = np.array(separations) / 2
    x = np.stack([-across, across], 1)
    optodes = np.stack([x, 0 * x, np.sqrt(RADIUS**2 - x**2)], -1)
    row = np.array([0, 0, 0, RADIUS, RADIUS, RADIUS, 0, 0, 0, 1, 2, MUA, MUSP])
    system = diffusion.assemble(medium(row[None], grid), m.frequency, m.n)
    light = jacobian.fields(system, *torch.from_numpy(optodes.swapaxes(0, 1).copy()), precise=True)
    phi, slopes = jacobian.jacobian(system, light, torch.tensor([[0, 0], [1, 1]]), grid)
    relative = (slopes / phi[:, None, None, None, None]).numpy()
    by = np.stack([relative.real, -relative.imag], 2)  # pair, channel, (ln A, phase), x, y, z
    rows = [_paths(optodes[i], by[i], grid, m) for i in range(len(optodes))]
    plane = by[..., grid // 2, :] / (phantoms.CUBE / grid) ** 3  # beside y = 0, where the next one mirrors it
    table = pd.DataFrame(rows, index=[f"{d:.0f} mm apart" for d in separations]).T
    return Bananas(plane.reshape(len(optodes), 4, grid, grid), optodes, table.reset_index(names="quantity"))


def _paths(optodes: np.ndarray, by: np.ndarray, grid: int, m: Measurements) -> dict[str, float]:
    """One pair: its mean path by the Jacobian and by the closed form, and how deep its sensitivity lies."""
    source, detector = optodes
    separation = np.linalg.norm(source - detector)
    buried = source * (1 - 1 / MUSP / RADIUS)
    up, down = (
        green.sphere(buried, detector[None], RADIUS, MUA * (1 + s), MUSP, m.frequency, m.n)[0] for s in (STEP, -STEP)
    )
    path = -by[0, 0].sum()
    row = {"mean path, mm": path}
    row |= {"mean path, exact sphere, mm": -np.log(abs(up / down)) / (2 * STEP * MUA)}
    row |= {"mean path / separation": path / separation}
    for name, channel, kind in (("ln A by mua", 0, 0), ("phase by mua", 0, 1), ("ln A by musp", 1, 0)):
        row[f"half of {name} above a depth of, mm"] = _median_depth(np.abs(by[channel, kind]), grid)
    return row


def _median_depth(weight: np.ndarray, grid: int) -> float:
    """Depth below the sphere's surface above which half of the weight lies, mm."""
    at = (np.arange(grid) + 0.5) * phantoms.CUBE / grid - phantoms.CUBE / 2
    depth = RADIUS - np.sqrt(at[:, None, None] ** 2 + at[:, None] ** 2 + at**2).ravel()
    order = np.argsort(depth)
    share = np.cumsum(weight.ravel()[order])
    return float(np.interp(0.5 * share[-1], share, depth[order]))


def inventory(data: Dataset) -> pd.DataFrame:
    """What a dataset holds, as text: parts, exclusions with their reasons, tumours, readings, noise, the file."""
    with store.File(data.path) as file:
        families = Counter(name.decode() for name in file.raw("family"))
        faults, sigma, phase = checks.faults(file), file.raw("sigma"), file.raw("phase")
        wiring = {name: file.raw(name) for name in store.MEASURED[:3]}
    good = data.labels >= 0
    separation, noise_of_ln = checks.separations(wiring)[good], 100 * sigma[good][..., 0]
    tumours = np.isfinite(data.ellipsoids[good][:, 1:, phantoms.MUA]).sum(1)
    excluded = Counter(reason for bits in faults for reason in checks.reasons(bits))
    rows = {"phantoms": ", ".join(f"{name} {count:,}" for name, count in families.items())}
    rows |= {" / ".join(NAMES): " / ".join(f"{(data.labels == i).sum():,}" for i in range(len(NAMES)))}
    rows |= {"excluded by the checks": f"{(~good).sum()}"} | {f"excluded: {r}": str(n) for r, n in excluded.items()}
    rows |= {"tumours a phantom": f"{tumours.min()} to {tumours.max()}, mean {tumours.mean():.2f}"}
    rows |= {"pairs a phantom": f"{sigma.shape[1]:,}, lost {100 * np.isnan(phase[good]).mean():.1f} %"}
    rows |= {"separation, mm": f"{separation.min():.1f} to {separation.max():.1f}, median {np.median(separation):.1f}"}
    low, middle, high = np.quantile(noise_of_ln, (0.05, 0.5, 0.95))
    rows |= {"sd of ln A, %": f"median {middle:.2g}, 90 % of the pairs in {low:.2g} to {high:.2g}"}
    rows |= {"pairs with an sd of ln A above 30 %": f"{100 * (noise_of_ln > 30).mean():.1f} %"}
    rows |= {"phase, deg": f"up to {np.degrees(np.nanmax(phase[good])):.0f}"}
    rows |= {"file": f"{data.path.name}, {data.path.stat().st_size / 1e6:.1f} MB"}
    return pd.DataFrame({"quantity": rows.keys(), "value": rows.values()})


def summary(data: Dataset) -> dict[str, np.ndarray]:
    """What the summary figure shows of a dataset's file."""
    return checks.sample(data.path, data.labels >= 0)


def limits(errors: pd.DataFrame, grid: int, finest: int, study: pd.DataFrame) -> pd.DataFrame:
    """What the simulated readings leave out, in numbers, and where each number is from."""
    crime = errors[errors["grid"] == grid]
    ln_a, phase = (tuple(crime[c].abs().quantile((0.5, 0.95))) for c in ("log_amplitude", "phase"))
    faint = study[study["stored_log_amplitude"] > 0.3]
    against = f"{grid}^3 against {finest}^3"
    first_order = "no such pair"
    if len(faint):
        off = (faint["log_amplitude"] / faint["stored_log_amplitude"]).median() - 1
        first_order = f"{100 * off:+.0f} % off, {100 * len(faint) / len(study):.1f} % of pairs"
    rows = [
        ("inverse crime, ln A", f"median {_two(100 * ln_a[0])} %, p95 {_two(100 * ln_a[1])} %", against),
        ("inverse crime, phase", f"median {_two(phase[0])} deg, p95 {_two(phase[1])} deg", against),
        ("diffusion for transport", "-3 to +2 %, 0.1 to 0.5 deg", "NOT computed here"),
        ("shortest separation", f"{shortest_separation():.1f} transport lengths", "ranges of the family"),
        ("largest mua / musp", f"{largest_ratio():.3f}", "ranges of the family"),
        ("stored sd above 30 %", first_order, "repeated recordings"),
    ]
    return pd.DataFrame(rows, columns=["limit", "size", "source"])


def _two(value: float) -> str:
    """Two significant digits, as a decimal."""
    return f"{float(f'{value:.1e}'):g}"


def shortest_separation() -> float:
    """In transport lengths 1 / (mua + musp) of the tissue of the default family that scatters least."""
    f = phantoms.FAMILIES["default"]
    return checks.SEPARATION[0] * (f.mua[0] + f.musp[0])


def largest_ratio() -> float:
    """The largest mua / musp of the default family: a tumour's, of most absorption and least scattering."""
    f = phantoms.FAMILIES["default"]
    return f.mua[1] * f.contrast_mua[1] / (f.musp[0] * f.contrast_musp[0])
