"""How well one ranking predicts another: Spearman's correlation and Kendall's weighted tau, of a few values each.

    spearman([0.9, 0.5, 0.7], [0.95, 0.80, 0.85])         # 1.0: the same order

None where a correlation is not defined: fewer than two values, or all of one side equal.
"""

from collections.abc import Sequence

import numpy as np


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, equal values sharing their mean rank (Spearman, 1904), in [-1, 1]."""
    ranks = [_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y)]
    first, second = (rank - rank.mean() for rank in ranks)
    scale = np.sqrt((first @ first) * (second @ second)) if len(first) else 0.0
    return float(first @ second / scale) if scale > 0 else None


def weighted_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau in which an exchange weighs more the nearer it is to the top, in [-1, 1].

    Vigna: A Weighted Correlation Index for Rankings with Ties, WWW 2015: a pair weighs 1 / (r + 1) + 1 / (s + 1) for
    the places r and s of its values, from 0 for the largest; the mean of tau with places by x and with places by y.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    found = [_tau(first, second, order) for order in (np.lexsort((second, first)), np.lexsort((first, second)))]
    return None if None in found else float(np.mean([tau for tau in found if tau is not None]))


def _tau(x: np.ndarray, y: np.ndarray, ascending: np.ndarray) -> float | None:
    places = np.empty(len(x))
    places[ascending[::-1]] = np.arange(len(x))
    weights = np.add.outer(1 / (places + 1), 1 / (places + 1))
    signs_x, signs_y = (np.sign(np.subtract.outer(values, values)) for values in (x, y))
    scale = np.sqrt((weights * signs_x**2).sum() * (weights * signs_y**2).sum())
    return float((weights * signs_x * signs_y).sum() / scale) if scale > 0 else None


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Places from 1 for the smallest; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]
