"""The error that training ends with in fp32, bf16 and fp16, seeds paired: do they differ by more than seeds do?

    python benchmarks/precision.py [--grid 16] [--phantoms 96] [--epochs 24] [--seeds 5] [--json FILE]

The `stage1` network under the one-cycle recipe, half the width, batches of 8; the endpoint is the nrmse of mua on the
validation split after the last epoch; a run that diverged counts with the worst one of all runs. A CPU without fp16
arithmetic emulates it, some hundred times slower than fp32: hence the small default. On a GPU: --grid 64 --phantoms
5000 --epochs 100.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import pandas as pd

from dotlib import machine, stats, trainer
from dotlib.config import Config, profile, replace

BASELINE, MARGIN = "fp32", 5.0  # per cent: within it two precisions count as equal


def run(config: Config, precision: str, seed: int, on: str) -> dict:
    """One run's row: precision, seed, nrmse_mua (validation, last epoch; NaN: failed), failed, skipped, seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = {"training.precision": precision, "seed": seed}
        try:
            history = trainer.fit(replace(config, changes), Path(folder), on, save_every=float("inf"))
        except trainer.DivergedError as error:
            history = error.history
    error = math.nan if history.failed else float(history.epochs["nrmse_mua"].iloc[-1])
    row = {"precision": precision, "seed": seed, "nrmse_mua": error, "failed": history.failed}
    skipped = sum(history.epochs.get("skipped", []))  # a run that failed in its first epoch has no row
    return row | {"skipped": int(skipped), "seconds": time.perf_counter() - start}


def summary(rows: list[dict]) -> list[dict]:
    """Each precision against fp32: change of the error with its 95 % interval over paired seeds, test of equality.

    A failed run has the worst error of all runs; `failed` counts them. Nothing where every run failed.
    """
    table = pd.DataFrame(rows).pivot(index="seed", columns="precision", values="nrmse_mua")
    failed = table.isna().sum()
    if (worst := table.max(axis=None)) != worst:
        return []
    table = table.fillna(worst)
    spread = 100 * table[BASELINE].std() / table[BASELINE].mean()
    found = []
    for name in table.columns.drop(BASELINE):
        effect = stats.paired_contrast(table[name], table[BASELINE]).effect
        row = {"contrast": f"{name} against {BASELINE}", "seeds": len(table), "effect, %": effect.estimate}
        row |= {"failed": int(failed[name]), f"failed, {BASELINE}": int(failed[BASELINE])}
        row |= {"low, %": effect.low, "high, %": effect.high, f"sd of {BASELINE} over seeds, %": spread}
        row |= {"verdict": stats.equivalence(table[name], table[BASELINE], MARGIN).verdict, "margin, %": MARGIN}
        found.append(row)
    return found


def write(path: Path, row: dict) -> None:
    """Append a row as a line of JSON, which has null for what is not finite."""
    unknown = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | unknown) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("grid", 16), ("phantoms", 96), ("epochs", 24), ("seeds", 5), ("width", 8), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="also append the rows here as they come, one JSON object a line")
    arguments = parser.parse_args()
    size = {"data.grid": arguments.grid, "data.phantoms": arguments.phantoms, "data.measurements": None}
    size |= {"training.epochs": arguments.epochs, "training.batch": arguments.batch, "model.width": arguments.width}
    config, on = replace(profile("quick").base, size), machine.device()
    facts = (
        {"machine": machine.name(on)} | machine.versions() | {k: v for k, v in vars(arguments).items() if k != "json"}
    )
    rows = []
    for seed in range(arguments.seeds):
        for precision in machine.PRECISIONS:
            rows.append(run(config, precision, seed, on))
            print(rows[-1], flush=True)
            if arguments.json:
                write(arguments.json, rows[-1] | facts)
    found = summary(rows)
    print(pd.DataFrame(found).to_string(index=False, float_format="%.3g") if found else "every run failed")
    for row in found if arguments.json else ():
        write(arguments.json, row | facts)


if __name__ == "__main__":
    main()
