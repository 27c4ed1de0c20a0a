"""The error that training ends with in fp32, bf16 and fp16, seeds paired: do they differ by more than seeds do?

    python benchmarks/precision.py [--grid 16] [--phantoms 96] [--epochs 24] [--seeds 5] [--json FILE]

The `stage1` network under the one-cycle recipe, half the width, batches of 8; the endpoint is the nrmse of mua on the
validation split after the last epoch. A CPU without fp16 arithmetic emulates it, some hundred times slower than fp32:
hence the small default. On a GPU: --grid 64 --phantoms 5000 --epochs 100.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd

from dotlib import machine, stats, trainer
from dotlib.config import Config, profile, replace

BASELINE, MARGIN = "fp32", 5.0  # per cent: within it two precisions count as equal


def run(config: Config, precision: str, seed: int, on: str) -> dict:
    """One run's row: precision, seed, nrmse_mua (validation, last epoch), skipped steps, seconds, failed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = {"training.precision": precision, "seed": seed}
        try:
            history = trainer.fit(replace(config, changes), Path(folder), on, save_every=float("inf"))
        except trainer.DivergedError as error:
            history = error.history
    last = history.epochs.iloc[-1] if len(history.epochs) else {"nrmse_mua": float("nan")}
    row = {"precision": precision, "seed": seed, "nrmse_mua": float(last["nrmse_mua"]), "failed": history.failed}
    return row | {"skipped": int(history.epochs["skipped"].sum()), "seconds": time.perf_counter() - start}


def summary(rows: list[dict]) -> list[dict]:
    """Each precision against fp32: change of the error with its 95 % interval over paired seeds, test of equality."""
    table = pd.DataFrame(rows).pivot(index="seed", columns="precision", values="nrmse_mua")
    spread = 100 * table[BASELINE].std() / table[BASELINE].mean()
    found = []
    for name in table.columns.drop(BASELINE):
        both = table[[name, BASELINE]].dropna()
        effect = stats.paired_contrast(both[name], both[BASELINE]).effect
        row = {"contrast": f"{name} against {BASELINE}", "seeds": len(both), "effect, %": effect.estimate}
        row |= {"low, %": effect.low, "high, %": effect.high, f"sd of {BASELINE} over seeds, %": spread}
        row |= {"verdict": stats.equivalence(both[name], both[BASELINE], MARGIN).verdict, "margin, %": MARGIN}
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("grid", 16), ("phantoms", 96), ("epochs", 24), ("seeds", 5), ("width", 8), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="also write the rows here, one JSON object a line")
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
    found = summary(rows)
    print(pd.DataFrame(found).to_string(index=False, float_format="%.3g"))
    if arguments.json:
        lines = [json.dumps(row | facts) + "\n" for row in rows + found]
        arguments.json.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
