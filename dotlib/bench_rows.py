"""What benchmarks are made of: the rate of a piece of work, and the row that is printed."""

from collections.abc import Callable

from . import machine
from .sections.roofline import median_seconds

REPEATS = 5


def rate(work: Callable[[], object], n: float, repeats: int = REPEATS) -> float:
    """n per second of the median repeat, after one warm-up."""
    return n / median_seconds(work, machine.device(), repeats)


def row(name: str, value: float, unit: str, baseline: str = "", base: float | None = None, n: int = REPEATS) -> dict:
    """One row: its value, over that of its baseline, from the median of n repeats."""
    ratio = value / base if base else None
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio, "n": n}
