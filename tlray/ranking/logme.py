"""LogME: the log evidence, per image, of a Bayesian linear model from the features to each class's 0/1 labels.

You, Liu, Wang, Long: LogME: Practical Assessment of Pre-trained Models for Transfer Learning, ICML 2021, equation 2;
the fixed-point iteration for its two precisions is algorithm 3 of You, Liu, Zhang, Wang, Jordan, Long: Ranking and
Tuning Pre-trained Models, JMLR 2022 (arXiv 2110.10545). MacKay's update (Bayesian Interpolation, 1992), done in the
basis of the features' singular vectors, where every step costs O(D).
"""

import numpy as np

MOST_STEPS = 100
TOLERANCE = 1e-6  # relative, on the ratio of the precisions
FLOOR = 1e-5  # added to sums of squares, as the authors do: without it an exact fit has an infinite precision


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """features (N, D), labels (N,) int -> the evidence in nats per image, mean over the classes that occur."""
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    classes = np.unique(labels)
    return float(np.mean([_evidence(left, singular**2, labels == label, features.shape) for label in classes]))


def _evidence(left: np.ndarray, squares: np.ndarray, is_class: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest log evidence per image of one class's targets; left (N, K) and squares (K,) of the features' SVD.

    alpha is the precision of the weights' prior, beta that of the noise. With t = alpha / beta and the targets' parts
    z along the singular vectors, the posterior mean has the squared norm sum(s z^2 / (t + s)^2) and leaves the
    residual sum(z^2 / (1 + s / t)^2) and what lies outside of the features' span.
    """
    num_images, width = shape
    target = is_class.astype(np.float64)
    parts = (left.T @ target) ** 2
    outside = max(0.0, float(target @ target - parts.sum()))
    ratio = 1.0
    for _ in range(MOST_STEPS):
        effective = (squares / (squares + ratio)).sum()  # well-determined weights
        norm = (squares * parts / (ratio + squares) ** 2).sum()
        residual = (parts / (1 + squares / ratio) ** 2).sum() + outside
        alpha, beta = effective / (norm + FLOOR), (num_images - effective) / (residual + FLOOR)
        before, ratio = ratio, alpha / beta
        if abs(ratio - before) <= TOLERANCE * before:
            break
    evidence = width * np.log(alpha) + num_images * np.log(beta) - np.log(alpha + beta * squares).sum()
    evidence -= (width - len(squares)) * np.log(alpha)  # directions without features: the prior stays the posterior
    evidence -= beta * residual + alpha * norm + num_images * np.log(2 * np.pi)
    return float(evidence / (2 * num_images))
