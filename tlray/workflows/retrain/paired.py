"""Two classifiers on the same images: is one better, and by how much? Numpy alone.

    test = mcnemar(challenger_is_right, champion_is_right)         # two bool (N,) over the same images
    test.p_value

McNemar's test (Q. McNemar, Psychometrika 12, 1947) looks at the images that exactly one of the two gets right. Where
both are equally good, each such image is a fair coin, so the exact p-value is a tail of the binomial distribution with
p = 1/2. It holds for any number of images. T. Dietterich (Approximate Statistical Tests for Comparing Supervised
Classification Learning Algorithms, Neural Computation 10, 1998) finds it the test to use where, as here, each model
was trained once: it does not call equal ones different more often than stated, as the differences of proportions do.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class McNemar:
    """One-sided: a small p-value says that the challenger is better."""

    num_images: int
    only_challenger: int  # images that it alone gets right
    only_champion: int
    p_value: float  # of as many or more of `only_challenger` among equals


def mcnemar(challenger: np.ndarray, champion: np.ndarray) -> McNemar:
    """bool (N,) each: which images a model gets right, the same image at the same place."""
    assert challenger.shape == champion.shape, f"{challenger.shape} and {champion.shape} cannot be paired"
    gained = int(np.count_nonzero(challenger & ~champion))
    lost = int(np.count_nonzero(champion & ~challenger))
    return McNemar(len(challenger), gained, lost, fair_coin_tail(gained, gained + lost))


def fair_coin_tail(heads: int, tosses: int) -> float:
    """P(`heads` or more of `tosses` tosses of a fair coin); in logarithms, so that thousands of tosses are no problem.

    log C(n, k) is the running sum of log((n - j + 1) / j), j = 1 … k.
    """
    assert 0 <= heads <= tosses, (heads, tosses)
    if heads == 0:
        return 1.0
    steps = np.arange(1, tosses + 1, dtype=np.float64)
    log_ways = np.concatenate([[0.0], np.cumsum(np.log(tosses - steps + 1) - np.log(steps))])
    log_terms = log_ways[heads:] - tosses * np.log(2)
    largest = log_terms.max()
    return float(min(1.0, np.exp(largest) * np.exp(log_terms - largest).sum()))
