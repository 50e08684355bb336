"""Figures as people read them: percent, points, durations, and which hyper-parameters a run has varied."""

from collections.abc import Sequence
from typing import Any

from tlray.runs.results import TrialResult

OF_SOLVED_PROBES = ("solver", "C")
ORDER = "trials within one standard error of the highest validation accuracy are ordered by calibrated validation loss"


def percent(fraction: float | None) -> str:
    """0.9333 -> "93.3"; of nothing "-"."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def points(fraction: float | None) -> str:
    """0.12 -> "+12.0"."""
    return "-" if fraction is None else f"{100 * fraction:+.1f}"


def interval(low: float | None, high: float | None) -> str:
    return f"[{points(low)}, {points(high)}]"


def duration(seconds: float) -> str:
    """As in "0.4 s", "42 s", "3:05 min", "2:07 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def count(number: float | None) -> str:
    """1234567 -> "1.23 M", 0.05 -> "0.05"."""
    if number is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}" if number >= 1 or number == 0 else f"{number:.2g}"


def varying_params(results: Sequence[TrialResult]) -> list[str]:
    """Hyper-parameters that do not have one value in all trials beside the baseline, in the recipe's order.

    A solved probe has few of them; what it has alone is among them.
    """
    rows = [row.params for row in results if not row.is_baseline]
    keys = list(dict.fromkeys(key for params in rows for key in params))
    values = {key: {repr(params[key]) for params in rows if key in params} for key in keys}
    return [key for key in keys if len(values[key]) > 1 or key in OF_SOLVED_PROBES]


def shared_params(results: Sequence[TrialResult]) -> dict[str, Any]:
    """Hyper-parameters with one value in all trials beside the baseline."""
    rows = [row.params for row in results if not row.is_baseline]
    varying = varying_params(results)
    return {key: value for params in rows for key, value in params.items() if key not in varying}
