"""Who is better, by how much, and beyond which interval: paired over the same test images, averaged over seeds.

    gain = paired_gain(ours, theirs)                  # of cells of one set, by seed
    outcome = summary(cells)                          # the keys of the benchmark's JSON object

The interval is a paired percentile bootstrap (Efron & Tibshirani 1993, chapter 13). Each resample draws the test images
of every seed with replacement, each image with both answers, and averages the seeds' differences. It holds the chance
of the test images; that of training is in it as far as the seeds show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.quality_parts.cells import Cell

OURS, ENSEMBLE, MEAN = "tlray", "tlray_ensemble", "logistic_mean"
NUM_RESAMPLES, CONFIDENCE = 10_000, 0.95
BySeed = Mapping[int, Cell]


@dataclass(frozen=True)
class Gain:
    """Points of test accuracy."""

    rival: str
    mean: float
    low: float
    high: float
    num_seeds: int


def paired_gain(ours: BySeed, theirs: BySeed) -> Gain:
    """Ours minus theirs over the seeds that both have; ValueError where they have none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError("no seed is common to both")
    draws = np.zeros(NUM_RESAMPLES)
    mean = 0.0
    for seed in seeds:
        if ours[seed].labels != theirs[seed].labels:
            raise ValueError(f"{ours[seed].key.name} and {theirs[seed].key.name} are of different test images")
        difference = ours[seed].correct.astype(int) - theirs[seed].correct.astype(int)
        shares = np.bincount(difference + 1, minlength=3) / len(difference)
        drawn = np.random.default_rng(seed).multinomial(len(difference), shares, size=NUM_RESAMPLES)
        draws += (drawn[:, 2] - drawn[:, 0]) / len(difference)
        mean += difference.mean()
    low, high = np.quantile(100 * draws / len(seeds), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Gain(next(iter(theirs.values())).key.rival, 100 * mean / len(seeds), float(low), float(high), len(seeds))


def by_set_and_rival(cells: Sequence[Cell]) -> dict[str, dict[str, dict[int, Cell]]]:
    """[set][rival][seed]; rivals that did not run are left out."""
    table: dict[str, dict[str, dict[int, Cell]]] = {}
    for cell in cells:
        if not cell.missing:
            table.setdefault(cell.key.set, {}).setdefault(cell.key.rival, {})[cell.key.seed] = cell
    return table


def gains_over_rivals(of_set: Mapping[str, BySeed]) -> list[Gain]:
    """tlray's single model over each rival on one set, the best rival (the smallest gain) first."""
    ours = of_set.get(OURS, {})
    rivals = [name for name in of_set if name not in (OURS, ENSEMBLE, MEAN) and ours.keys() & of_set[name].keys()]
    return sorted((paired_gain(ours, of_set[name]) for name in rivals), key=lambda gain: gain.mean)


def summary(cells: Sequence[Cell]) -> dict[str, object]:
    """None where no cell says it."""
    table = by_set_and_rival(cells)
    gains = {name: found for name, of_set in table.items() if (found := gains_over_rivals(of_set))}
    ensembles = [
        paired_gain(of_set[ENSEMBLE], of_set[MEAN]).mean
        for of_set in table.values()
        if of_set.get(ENSEMBLE, {}).keys() & of_set.get(MEAN, {}).keys()
    ]
    below = sorted(name for name, found in gains.items() if any(gain.high < 0 for gain in found))
    return {
        "below_best_beyond_interval": len(below) if gains else None,
        "mean_gain_over_best_points": _mean([found[0].mean for found in gains.values()]),
        "ensemble_gain_over_mean_points": _mean(ensembles),
        "cost_over_dearest": cost_over_dearest(cells),
        "sets_below": below,
    }


def cost_over_dearest(cells: Sequence[Cell]) -> float | None:
    """tlray's CPU seconds over those of the rival that took most, both over the sets and seeds that both ran."""
    ran = {(cell.key.rival, cell.key.set, cell.key.seed): cell.cpu_seconds for cell in cells if not cell.missing}
    ratios = []
    for rival in {name for name, _, _ in ran} - {OURS, ENSEMBLE, MEAN}:
        places = [place for name, *place in ran if name == rival and (OURS, *place) in ran]
        if places:
            ratios.append(sum(ran[(OURS, *place)] for place in places) / sum(ran[(rival, *place)] for place in places))
    return round(min(ratios), 3) if ratios else None


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None
