"""Regret without the luck of one split: the oracle is the configuration with the best mean test score over the seeds.

    oracle = noise_free([scores of seed 0, scores of seed 1, ...])      # configuration -> mean score
    found = regrets(rows)                                               # of one set, a row for each seed

The best of many configurations on the test images of one seed is above what any of them has on others: its error is
part of why it was picked. Over the seeds, which draw other images to train on and to test, errors average out.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

CHOOSERS = ("exhaustive", "choice", "random", "random_sharing", "asha", "asha_sharing")


def noise_free(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Configuration -> mean of its scores, points; those that have one with every seed."""
    common = set.intersection(*(set(of_seed) for of_seed in scores))
    return {name: statistics.mean(of_seed[name] for of_seed in scores) for name in sorted(common)}


def regrets(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Points that each chooser's models have less than the oracle, means over the seeds of one set.

    A row has `scores`, of all configurations by name, and the test accuracy of each of CHOOSERS.
    """
    best = max(noise_free([row["scores"] for row in rows]).values())
    means = {name: statistics.mean(row[name] for row in rows) for name in CHOOSERS}
    return {
        "regret_to_exhaustive_points": means["exhaustive"] - means["choice"],
        "mean_regret_points": best - means["choice"],
        **{f"{name}_regret_points": best - means[name] for name in CHOOSERS if name != "choice"},
    }
