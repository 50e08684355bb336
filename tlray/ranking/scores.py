"""Every score of one backbone's features, and which of them may decide. No torch here.

    scores = score_features(features, labels, probabilities, seed=0)      # {"linear_probe": 0.96, "leep": None, ...}

Higher is better in all of them. Features are divided by their root mean square first: the scores' small constants then
mean the same for every backbone, and no score changes its order by it.
"""

import numpy as np

from tlray.ranking.hscore import adjusted_h_score
from tlray.ranking.knn import knn
from tlray.ranking.leep import leep
from tlray.ranking.linear_probe import linear_probe
from tlray.ranking.logme import logme
from tlray.ranking.nleep import nleep

NAMES = {  # as tables and reports call them
    "linear_probe": "linear probe",
    "knn": "kNN",
    "logme": "LogME",
    "h_score": "H-score",
    "nleep": "NLEEP",
    "leep": "LEEP",
}
SHARES = ("linear_probe", "knn")  # accuracies in [0, 1]; the others have units of their own


def score_features(
    features: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None, *, seed: int
) -> dict[str, float | None]:
    """features (N, D), labels (N,) int of two classes or more; probabilities (N, Z) of the classes of the weights, for
    LEEP, None where they have no head. By the names of NAMES. ValueError when all images have the same features.
    """
    values = features.astype(np.float64)
    if not np.ptp(values, axis=0).any():
        raise ValueError("its features are the same for every image")
    values /= np.sqrt(np.mean(values**2))
    return {
        "linear_probe": linear_probe(values, labels),
        "knn": knn(values, labels),
        "logme": logme(values, labels),
        "h_score": adjusted_h_score(values, labels),
        "nleep": nleep(values, labels, seed),
        "leep": None if probabilities is None else leep(probabilities, labels),
    }
