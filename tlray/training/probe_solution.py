"""The solution of a linear probe on features: how strongly to regularise is chosen by cross-validation.

    solution = solve(features, labels, num_classes=10, seed=0)
    logits = features @ solution.weight.T + solution.bias

What a careful person does with scikit-learn: standardise the features, try ten strengths (LogisticRegressionCV's) in
five stratified folds of the training images, take the best and fit all of them. The standardisation is folded into the
weights, so that whoever uses them need not know of it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tlray.training.logistic import Basis, minimise

STRENGTHS = tuple(10.0 ** (-4 + 8 * step / 9) for step in range(10))  # LogisticRegressionCV's: inverse, of the sum
FOLDS = 5
FOLD_TOLERANCE = 1e-5  # nats of the whole loss of a fold: it only tells strengths apart
LARGEST_STACK = 2**30  # bytes of what the problems hold that are solved at once
COPIES_OF_LOGITS, COPIES_OF_WEIGHTS = 5, 32  # that a problem holds; L-BFGS remembers steps and gradients
ABSENT = 20.0  # nats that a class without training images is behind all others


@dataclass(frozen=True)
class Solution:
    """A linear layer on features as they are, and how it was found."""

    weight: torch.Tensor  # (C, D) float32
    bias: torch.Tensor  # (C,) float32
    strength: float  # inverse, as scikit-learn's C
    loss: float  # mean cross-entropy of the training images, nats
    held_out: dict[float, float]  # by strength: mean cross-entropy of images that a fold held out; may be empty


def solve(features: torch.Tensor, labels: torch.Tensor, num_classes: int, seed: int) -> Solution:
    """features (N, D) float, labels (N,) int64, both on one device."""
    present, labels = torch.unique(labels, return_inverse=True)
    mean, deviation = _moments(features)
    basis = Basis.of((features.double() - mean) / deviation)
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64, device=features.device)
    held_out = _held_out_losses(basis.rows, labels, len(present), strengths, seed)
    best = int(held_out.argmin()) if len(held_out) else int((strengths.log().abs()).argmin())
    everything = torch.ones(1, len(labels), dtype=torch.float64, device=features.device)
    solved = minimise(basis.rows, labels, len(present), everything, strengths[best : best + 1])
    weights = (basis.axes @ solved.weights[0]) / deviation[:, None]  # (D, present)
    biases = solved.biases[0] - mean @ weights
    logits = basis.rows @ solved.weights[0] + solved.biases[0]
    weight = weights.mean(dim=1).expand(num_classes, -1).clone()
    bias = (biases.mean() - ABSENT).expand(num_classes).clone()
    weight[present], bias[present] = weights.T, biases
    return Solution(
        weight=weight.float(),
        bias=bias.float(),
        strength=STRENGTHS[best],
        loss=float(torch.nn.functional.cross_entropy(logits, labels)),
        held_out=dict(zip(STRENGTHS, held_out.tolist(), strict=False)),
    )


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) float64; infinite where a feature is constant, which then has no weight."""
    mean = features.double().mean(dim=0)
    deviation = (features.double() - mean).square().mean(dim=0).sqrt()
    rounding = 1e-7 * features.double().abs().amax(dim=0)
    return mean, torch.where(deviation > rounding, deviation, torch.inf)


def _held_out_losses(
    rows: torch.Tensor, labels: torch.Tensor, num_classes: int, strengths: torch.Tensor, seed: int
) -> torch.Tensor:
    """The mean cross-entropy, by strength (S,), of images by models that have not seen them; empty without folds."""
    fold_of = torch.as_tensor(stratified_folds(labels.cpu().numpy(), seed), device=rows.device)
    num_folds = int(fold_of.max()) + 1
    if num_folds < 2:
        return strengths[:0]
    folds = torch.arange(num_folds, device=rows.device)
    weights = (fold_of != folds[:, None]).double()  # (K, N)
    problems = [(strength, fold) for strength in range(len(strengths)) for fold in range(num_folds)]
    losses = torch.zeros(len(strengths), dtype=torch.float64, device=rows.device)
    for some in _portions(problems, _problem_bytes(rows, num_classes)):
        which, fold = (torch.tensor(places, device=rows.device) for places in zip(*some, strict=True))
        solved = minimise(rows, labels, num_classes, weights[fold], strengths[which], FOLD_TOLERANCE)
        for place, (strength, held) in enumerate(some):
            out = fold_of == held
            logits = rows[out] @ solved.weights[place] + solved.biases[place]
            losses[strength] += torch.nn.functional.cross_entropy(logits, labels[out], reduction="sum")
    return losses / (fold_of >= 0).sum()


def stratified_folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fold (N,) for each image, every class spread over them evenly; -1 for the only image of a class.

    Folds are as many as the largest class can fill, five at most. A class with fewer images has none in some of them,
    and all but one of its images in what the others train on.
    """
    random = np.random.default_rng(seed)
    counts = np.bincount(labels)
    num_folds = min(FOLDS, int(counts.max()))
    folds = np.full(len(labels), -1)
    first = 0  # where the last class ended, so that folds are equally large
    for label in np.flatnonzero(counts > 1):
        members = random.permutation(np.flatnonzero(labels == label))
        folds[members] = (first + np.arange(len(members))) % num_folds
        first += len(members)
    return folds


def _problem_bytes(rows: torch.Tensor, num_classes: int) -> int:
    return 8 * num_classes * (COPIES_OF_LOGITS * rows.shape[0] + COPIES_OF_WEIGHTS * (rows.shape[1] + 1))


def _portions(problems: list[tuple[int, int]], bytes_each: int) -> list[list[tuple[int, int]]]:
    size = max(1, LARGEST_STACK // bytes_each)
    return [problems[start : start + size] for start in range(0, len(problems), size)]
