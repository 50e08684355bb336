"""LEEP: how well the classes that a model was trained on predict the new ones, without training anything.

Nguyen, Hassner, Seeger, Archambeau: LEEP: A New Measure to Evaluate Transferability of Learned Representations,
ICML 2020, equations 1 and 2.
"""

import numpy as np


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean log likelihood (nats, at most 0) of the labels under p(y | x) = sum over z of p(y | z) p(z | x).

    probabilities (N, Z): of each source class for each image; labels (N,) int. p(y | z) is counted on the same images.
    """
    probabilities = probabilities.astype(np.float64)
    classes, labels = np.unique(labels, return_inverse=True)
    joint = np.zeros((len(classes), probabilities.shape[1]))  # p(y, z) times N
    np.add.at(joint, labels, probabilities)
    of_source = joint.sum(axis=0)
    conditional = np.divide(joint, of_source, out=np.zeros_like(joint), where=of_source > 0)
    likelihood = (probabilities * conditional[labels]).sum(axis=1)
    return float(np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean())
