"""Leave-one-out accuracy of a linear probe, all regularisation strengths at once.

Ridge regression onto the classes' 0/1 labels: one decomposition of the features gives every strength's predictions for
every image by the model trained without that image (Allen's PRESS, 1974; Rifkin, Lippert: Notes on Regularized Least
Squares, MIT 2007, section 3). No training, no held-out part, and nothing drawn at random.
"""

import numpy as np

STRENGTHS = tuple(10.0**power for power in range(-3, 4))  # times the number of images; features have unit variance


def linear_probe(features: np.ndarray, labels: np.ndarray) -> float:
    """features (N, D), labels (N,) int -> the best strength's share of images whose left-out prediction is right."""
    return max(accuracies(features, labels))


def accuracies(features: np.ndarray, labels: np.ndarray) -> list[float]:
    """The leave-one-out accuracy at each of STRENGTHS; the intercept is not regularised.

    With H = 11'/N + U diag(s^2 / (s^2 + lambda)) U' of the standardised features, the left-out prediction of image i
    is (Hy - h_ii y)_i / (1 - h_ii).
    """
    num_images = len(labels)
    classes, labels = np.unique(labels, return_inverse=True)
    targets = np.eye(len(classes))[labels]
    left, singular, _ = np.linalg.svd(standardised(features), full_matrices=False)
    along = left.T @ (targets - targets.mean(axis=0))
    found = []
    for strength in STRENGTHS:
        kept = singular**2 / (singular**2 + strength * num_images)
        fitted = targets.mean(axis=0) + left @ (kept[:, None] * along)
        own = (1 / num_images + (left**2) @ kept)[:, None]  # h_ii: what an image adds to its own prediction
        left_out = (fitted - own * targets) / np.maximum(1 - own, np.finfo(np.float64).eps)
        found.append(float((left_out.argmax(axis=1) == labels).mean()))
    return found


def standardised(features: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance in every column, float64; constant columns become zero."""
    centred = features.astype(np.float64)
    centred = centred - centred.mean(axis=0)
    deviations = centred.std(axis=0)
    return centred / np.where(deviations > 1e-12 * deviations.max(initial=1.0), deviations, np.inf)
