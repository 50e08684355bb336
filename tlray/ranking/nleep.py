"""NLEEP: LEEP with clusters of the features in the place of source classes, for models without a source head.

Li, Jia, Sang, Zhu, Green, Wang, Gong: Ranking Neural Checkpoints, CVPR 2021, section 3.3: the features' principal
components that hold 80 % of their variance, a Gaussian mixture of them with five components a class, and LEEP of the
mixture's posterior p(component | image). Of few images the mixture has fewer components, ten images for each but one a
class at least: a component of two images agrees with their labels by chance.
"""

import numpy as np

from tlray.ranking.leep import leep
from tlray.ranking.mixture import fit_mixture

ENERGY = 0.8
COMPONENTS_PER_CLASS = 5
IMAGES_PER_COMPONENT = 10


def nleep(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """features (N, D), labels (N,) int -> LEEP (nats, at most 0) of the mixture's components."""
    reduced = principal_components(features)
    num_classes = len(np.unique(labels))
    most = max(num_classes, len(labels) // IMAGES_PER_COMPONENT)
    return leep(fit_mixture(reduced, min(COMPONENTS_PER_CLASS * num_classes, most), seed=seed), labels)


def principal_components(features: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, K) float64: the fewest components that hold ENERGY of the variance."""
    centred = features.astype(np.float64)
    centred = centred - centred.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(singular**2) / max((singular**2).sum(), np.finfo(np.float64).tiny)
    num_kept = min(int(np.searchsorted(share, ENERGY)) + 1, len(singular))
    return left[:, :num_kept] * singular[:num_kept]
