"""Which models an ensemble is made of, and in what parts: greedy selection with replacement.

    counts = select(true_probabilities, most_members=5)        # {place of a model: how often it was chosen}

Caruana, Niculescu-Mizil, Crew & Ksikes, Ensemble Selection from Libraries of Models, ICML 2004: begin with the best
model, add again and again the one with which the mean of the probabilities is best on the validation split, keep the
best ensemble on the way. A model chosen twice has twice the weight. What is made best is the log loss, not the
accuracy: of a hundred validation images, the accuracy tells few ensembles apart.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

NUM_ROUNDS = 30  # models chosen, repetitions included
LEAST_PROBABILITY = 1e-7  # a single image that a model is sure of, and wrong, does not decide alone
LEAST_GAIN = 1e-6  # nats per image


def select(true_probabilities: np.ndarray, most_members: int, start: Sequence[int] = ()) -> dict[int, int]:
    """true_probabilities (M, N): what each of M models gives the true class of N validation images -> counts by place.

    At most `most_members` different models. Ties go to the model that stands first. `start`: places of models that are
    in from the beginning, once each; the paper's sorted initialisation.
    """
    bounded = np.maximum(true_probabilities, LEAST_PROBABILITY)
    total: np.ndarray = bounded[list(start)].sum(axis=0)
    chosen: list[int] = list(start)
    losses = [float(-np.log(total / len(start)).mean())] if start else []
    for number in range(len(start) + 1, NUM_ROUNDS + 1):
        allowed = sorted(set(chosen)) if len(set(chosen)) == most_members else range(len(bounded))
        after = [-np.log((total + bounded[place]) / number).mean() for place in allowed]
        best = int(np.argmin(after))
        chosen.append(list(allowed)[best])
        losses.append(float(after[best]))
        total += bounded[chosen[-1]]
    enough = next(place for place, loss in enumerate(losses) if loss <= min(losses) + LEAST_GAIN)
    return dict(sorted(Counter(chosen[: enough + max(1, len(start))]).items()))


def mean_log_probabilities(logs: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Log of the weighted mean of probabilities: each of `logs` (N, C), weights sum to 1 -> (N, C)."""
    total = np.zeros_like(logs[0])
    for some, weight in zip(logs, weights, strict=True):
        total += weight * np.exp(some)
    mean: np.ndarray = np.log(np.maximum(total, np.finfo(np.float64).tiny))
    return mean
