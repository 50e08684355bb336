"""Leave-one-out accuracy of nearest neighbours by cosine similarity.

Votes are weighted by exp(similarity / 0.07), as Wu, Xiong, Yu, Lin: Unsupervised Feature Learning via Non-Parametric
Instance Discrimination, CVPR 2018, section 3.4, test what a network has learned.
"""

import numpy as np

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
ROWS_AT_ONCE = 1024


def knn(features: np.ndarray, labels: np.ndarray) -> float:
    """features (N, D), labels (N,) int -> the share of images whose neighbours vote for the image's own class."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(norms, np.finfo(np.float64).tiny)).astype(np.float64)
    classes, labels = np.unique(labels, return_inverse=True)
    num_neighbours = min(NUM_NEIGHBOURS, len(labels) - 1)
    num_right = 0
    for start in range(0, len(labels), ROWS_AT_ONCE):
        similarities = unit[start : start + ROWS_AT_ONCE] @ unit.T
        rows = np.arange(len(similarities))
        similarities[rows, start + rows] = -np.inf
        nearest = np.argpartition(-similarities, num_neighbours - 1, axis=1)[:, :num_neighbours]
        closeness = similarities[rows[:, None], nearest]
        weights = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / TEMPERATURE)
        votes = np.zeros((len(rows), len(classes)))
        np.add.at(votes, (rows[:, None], labels[nearest]), weights)
        num_right += int((votes.argmax(axis=1) == labels[start + rows]).sum())
    return num_right / len(labels)
