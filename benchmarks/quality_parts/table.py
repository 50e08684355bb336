"""The cells as Markdown, and its place in docs/results/quality.md.

text = table(cells)
replace_table(Path("docs/results/quality.md"), text)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality_parts.cells import Cell
from benchmarks.quality_parts.compare import (
    ENSEMBLE,
    MEAN,
    OURS,
    BySeed,
    Gain,
    by_set_and_rival,
    gains_over_rivals,
    paired_gain,
)
from benchmarks.quality_parts.rivals import LABELS
from benchmarks.quality_parts.sets import SETS

START, END = "<!-- table: python -m benchmarks.quality -->", "<!-- end of table -->"


def table(cells: Sequence[Cell]) -> str:
    """Scores, then tlray's gains, then what did not run."""
    found = by_set_and_rival(cells)
    names = [name for name in SETS if name in found]
    lines = ["Test accuracy / macro-F1, means over the seeds in brackets; CPU seconds are means over all cells.", ""]
    lines += [f"| | {' | '.join(names)} | CPU s |", f"|---|{'--:|' * (len(names) + 1)}"]
    for rival, label in LABELS.items():
        of_sets = [found[name].get(rival, {}) for name in names]
        if any(of_sets):
            cost = np.mean([cell.cpu_seconds for of_set in of_sets for cell in of_set.values()])
            lines.append(f"| {label} | {' | '.join(map(_scores, of_sets))} | {cost:.0f} |")
    return "\n".join([*lines, "", *_gains(found, names), *_missing(cells), *_codes(cells)])


def replace_table(page: Path, text: str) -> None:
    """Put `text` between the page's two markers."""
    before, found, rest = page.read_text().partition(START)
    _, found_end, after = rest.partition(END)
    if not found or not found_end:
        raise ValueError(f"{page} has no line {START} followed by {END}")
    page.write_text(f"{before}{START}\n\n{text.strip()}\n\n{END}{after}")


def _scores(of_set: BySeed) -> str:
    if not of_set:
        return ""
    accuracy = np.mean([cell.accuracy for cell in of_set.values()])
    f1 = np.mean([cell.macro_f1 for cell in of_set.values()])
    return f"{accuracy:.1f} / {f1:.1f} ({','.join(map(str, sorted(of_set)))})"


def _gains(found: Mapping[str, Mapping[str, BySeed]], names: Sequence[str]) -> list[str]:
    lines = ["| points of accuracy [95 %] | over the best of the others | which | ensemble over the mean |"]
    lines.append("|---|--:|---|--:|")
    for name in names:
        gains = gains_over_rivals(found[name])
        if gains:
            of_ensemble = found[name].get(ENSEMBLE, {})
            both = of_ensemble.keys() & found[name].get(MEAN, {}).keys()
            ensemble = _interval(paired_gain(of_ensemble, found[name][MEAN])) if both else ""
            lines.append(f"| {name} | {_interval(gains[0])} | {LABELS[gains[0].rival]} | {ensemble} |")
    return [*lines, ""] if len(lines) > 2 else []


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def _missing(cells: Sequence[Cell]) -> list[str]:
    reasons = {cell.key.rival: cell.missing for cell in cells if cell.missing}
    return [f"- {LABELS[rival]} did not run: {reason}" for rival, reason in reasons.items()]


def _codes(cells: Sequence[Cell]) -> list[str]:
    commits = sorted({cell.commit for cell in cells if cell.key.rival == OURS})
    return [f"- tlray's cells are of commit {', '.join(commits)}."] if commits else []
