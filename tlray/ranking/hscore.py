"""H-score: how much of the features' variance lies between the classes, in the features' own metric.

H = tr(cov(f)^-1 cov(E[f | y])), Bao, Li, Huang, Zhang, Zheng, Zamir, Guibas: An Information-Theoretic Approach to
Transferability in Task Transfer Learning, ICIP 2019, definition 2. With no more images than features it is the number
of classes less one whatever the features are, so it tells nothing: Ibrahim, Ponomareva, Mazumder: Newer is not always
better, ECML 2022 (arXiv 2110.06893), put Ledoit and Wolf's estimate in place of the covariance.

Even so, features of an untrained network can score above trained ones of fewer dimensions: with few images, shuffled
labels score nearly as high as the true ones, the more so the wider the features. Rankings therefore show
`adjusted_h_score`: what is left above that chance, as a share of what there could be.
"""

import numpy as np

NEGLIGIBLE = 1e-12  # of the largest variance: the pseudo-inverse leaves such directions out


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Bao et al.'s score of features (N, D) and labels (N,) int, between 0 and the number of classes less one."""
    variances, between = _variances(features, labels)
    return _trace(between, variances / (len(labels) - 1))


def regularised_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Ibrahim et al.'s: (1 - a) tr(cov_a(f)^-1 cov(E[f | y])), cov_a = (1 - a) cov(f) + a tr(cov(f)) / D.

    As in published code, cov(f) divides by N here, as Ledoit and Wolf do, and the covariance of the means by N - 1.
    """
    variances, between = _variances(features, labels)
    alpha = ledoit_wolf(features)
    variances = variances / len(labels)
    return (1 - alpha) * _trace(between, (1 - alpha) * variances + alpha * variances.sum() / features.shape[1])


def adjusted_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """The regularised H-score above its mean over all permutations of the labels: 0 is chance, 1 the most there can be.

    (H - E[H]) / (C - 1 - E[H]), the correction of Hubert, Arabie: Comparing Partitions, J. Classification 1985,
    equation 5. Under permutations every direction's variance between C classes is (C - 1) / (N - 1) of its sum of
    squares over N - 1, so the mean has a closed form. All covariances divide by N here: the most is C - 1 exactly.
    """
    num_images, num_classes = len(labels), len(np.unique(labels))
    squares, between = _variances(features, labels)
    alpha = ledoit_wolf(features)
    variances = squares / num_images
    shrunk = (1 - alpha) * variances + alpha * variances.sum() / features.shape[1]
    between = between * (num_images - 1) / num_images
    by_chance = variances * (num_classes - 1) / (num_images - 1)
    score, expected = ((1 - alpha) * _trace(part, shrunk) for part in (between, by_chance))
    possible = num_classes - 1 - expected
    return (score - expected) / possible if possible > NEGLIGIBLE else 0.0


def ledoit_wolf(features: np.ndarray) -> float:
    """The shrinkage in [0, 1] of Ledoit, Wolf: A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices,
    J. Multivariate Analysis 2004, lemmas 3.2 to 3.4; features (N, D). 1 for constant ones.

    The norm of the covariance comes from the Gram matrix (N, N) where that is the smaller one.
    """
    centred = _centred(features)
    num_images, width = centred.shape
    small = centred @ centred.T if num_images < width else centred.T @ centred
    norm = (small**2).sum() / num_images**2
    distance = norm - (np.trace(small) / num_images) ** 2 / width  # to the nearest multiple of the identity, squared
    noise = ((centred**2).sum(axis=1) ** 2).sum() / num_images**2 - norm / num_images
    return float(np.clip(noise / distance, 0.0, 1.0)) if distance > 0 else 1.0


def _variances(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along each principal direction (K,): the sum of squares of all images, and the variance of the class means."""
    centred = _centred(features)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([centred[labels == label].mean(axis=0) for label in classes])  # in the span of the features
    between = (counts[:, None] * (means @ right.T) ** 2).sum(axis=0) / (len(labels) - 1)
    return singular**2, between


def _trace(between: np.ndarray, variances: np.ndarray) -> float:
    used = variances > NEGLIGIBLE * variances.max(initial=0.0)
    return float((between[used] / variances[used]).sum())


def _centred(features: np.ndarray) -> np.ndarray:
    values = features.astype(np.float64)
    return values - values.mean(axis=0)
