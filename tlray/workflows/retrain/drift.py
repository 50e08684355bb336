"""How the new training images differ from the old ones, in the features of a backbone and in their labels. Numpy alone.

    drift = measure_drift(old_features, old_labels, new_features, new_labels)

Four numbers, each of which means something by itself:

- the energy distance between the two sets of features (G. Szekely, M. Rizzo: Energy statistics, Journal of Statistical
  Planning and Inference 143, 2013), as a share of its possible size, with the p-value of a permutation test;
- how well a linear classifier tells new from old: the area under its ROC curve on images that it was not fitted to,
  0.5 for sets that it cannot tell apart (D. Lopez-Paz, M. Oquab: Revisiting Classifier Two-Sample Tests, ICLR 2017);
- the total variation distance between the shares of the classes: 0 for equal shares, 1 for no class in common;
- how often the label of a new image is not that of most of its nearest old neighbours, beside the same among old
  images: what is far above it are wrong labels, or images that the old ones say nothing about (Z. Zhu, Z. Dong, Y. Liu:
  Detecting Corrupted Labels Without Training a Model to Predict, ICML 2022, finds wrong labels by the same vote).
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

NUM_PERMUTATIONS = 200
NUM_FOLDS = 5
NUM_NEIGHBOURS = 10
RIDGE = 0.1  # of the mean squared length of a row: what is added to the diagonal
SEED = 0


class Drift(BaseModel):
    """New training images against old ones; features are those of `backbone`."""

    model_config = ConfigDict(frozen=True)

    backbone: str = ""
    num_old: int  # images that were compared
    num_new: int
    energy: float  # in [0, 1]
    energy_p_value: float
    auc: float  # 0.5: new and old cannot be told apart
    class_shares: float  # total variation distance, in [0, 1]
    new_disagreement: float | None  # share of new images; None where none has a class that the old ones have
    old_disagreement: float


def measure_drift(
    old: np.ndarray, old_labels: Sequence[str], new: np.ndarray, new_labels: Sequence[str], backbone: str = ""
) -> Drift:
    """Features (N, D) and (M, D) of finite numbers, with N, M >= 2, and the name of each image's class."""
    features = standardised(np.concatenate([old, new]).astype(np.float64))
    is_new = np.arange(len(features)) >= len(old)
    distances = pairwise_distances(features)
    energy, p_value = _energy_test(distances, is_new)
    labels = np.array([*old_labels, *new_labels], dtype=object)
    in_old = np.isin(labels.astype(str), sorted(set(old_labels)))
    disagrees = _disagreement(distances, labels, ~is_new)
    return Drift(
        backbone=backbone,
        num_old=len(old),
        num_new=len(new),
        energy=energy,
        energy_p_value=p_value,
        auc=classifier_auc(features, is_new),
        class_shares=total_variation(old_labels, new_labels),
        new_disagreement=float(disagrees[is_new & in_old].mean()) if (is_new & in_old).any() else None,
        old_disagreement=float(disagrees[~is_new].mean()),
    )


def standardised(features: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and standard deviation 1, so that no feature counts for its unit; constant ones are 0."""
    spread = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def pairwise_distances(rows: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, N), Euclidean."""
    squares = (rows**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0.0))
    np.fill_diagonal(distances, 0.0)
    return distances


def energy_distance(distances: np.ndarray, is_new: np.ndarray) -> float:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'|, of all pairs of the two samples; distances (N, N), is_new bool (N,)."""
    across, within_old, within_new = _means(distances, is_new[:, None].astype(np.float64))
    return float((2 * across - within_old - within_new)[0])


def _energy_test(distances: np.ndarray, is_new: np.ndarray) -> tuple[float, float]:
    """(the distance over 2 E|X-Y|, share of permutations with at least this distance, itself counted)."""
    generator = np.random.default_rng(SEED)
    shuffled = [generator.permutation(is_new) for _ in range(NUM_PERMUTATIONS)]
    across, within_old, within_new = _means(distances, np.stack([is_new, *shuffled], axis=1).astype(np.float64))
    found = 2 * across - within_old - within_new
    share = float(found[0] / (2 * across[0])) if across[0] > 0 else 0.0
    return max(0.0, share), float((found >= found[0] - 1e-12).mean())


def _means(distances: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean distances (across, within old, within new) for each column of `new` (N, P), 1.0 where an image is new."""
    old = 1 - new
    to_new = distances @ new
    num_old, num_new = old.sum(axis=0), new.sum(axis=0)
    total_old = (old * (distances @ old)).sum(axis=0)
    return (
        (old * to_new).sum(axis=0) / (num_old * num_new),
        total_old / num_old**2,
        (new * to_new).sum(axis=0) / num_new**2,
    )


def classifier_auc(features: np.ndarray, is_new: np.ndarray) -> float:
    """Ridge regression on the two classes, scored on the fold that it was not fitted to; features (N, D).

    In the dual form, whose cost depends on the number of images and not on that of features. Folds are compared by
    rank within themselves, as their scores have no common zero.
    """
    places = np.random.default_rng(SEED).permutation(len(features))
    order = places[np.argsort(is_new[places], kind="stable")]  # every n-th of it: the same shares in each fold
    kernel = features @ features.T
    target = np.where(is_new, 1.0, -1.0)
    areas = []
    for fold in range(NUM_FOLDS):
        held = np.zeros(len(features), bool)
        held[order[fold::NUM_FOLDS]] = True
        if is_new[held].all() or not is_new[held].any() or is_new[~held].all() or not is_new[~held].any():
            continue
        fitted = kernel[np.ix_(~held, ~held)]
        mean = target[~held].mean()
        ridge = RIDGE * np.trace(fitted) / len(fitted) + 1e-12
        weights = np.linalg.solve(fitted + ridge * np.eye(len(fitted)), target[~held] - mean)
        areas.append(auc(kernel[np.ix_(held, ~held)] @ weights, is_new[held]))
    return float(np.mean(areas)) if areas else 0.5


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(score of a positive > that of a negative), ties counted half: Mann and Whitney's U over its largest value."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    num_positive = int(positive.sum())
    smallest = num_positive * (num_positive + 1) / 2
    return float((ranks[positive].sum() - smallest) / (num_positive * (len(scores) - num_positive)))


def total_variation(old_labels: Sequence[str], new_labels: Sequence[str]) -> float:
    """Half the sum of the absolute differences of the classes' shares."""
    names = sorted({*old_labels, *new_labels})
    old, new = (np.array([list(labels).count(name) for name in names]) for labels in (old_labels, new_labels))
    return float(np.abs(old / old.sum() - new / new.sum()).sum() / 2)


def _disagreement(distances: np.ndarray, labels: np.ndarray, is_old: np.ndarray) -> np.ndarray:
    """Whether most of the nearest old images, oneself not counted, have another label: bool (N,)."""
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    old = np.flatnonzero(is_old)
    to_old = distances[:, old].copy()
    to_old[old, np.arange(len(old))] = np.inf
    num = min(NUM_NEIGHBOURS, len(old) - 1)
    nearest = np.argpartition(to_old, num - 1, axis=1)[:, :num]
    votes = np.zeros((len(labels), len(names)))
    np.add.at(votes, (np.arange(len(labels))[:, None], codes[old][nearest]), 1.0)
    return votes.argmax(axis=1) != codes
