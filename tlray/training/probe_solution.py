"""The solution of a linear probe on features: how strongly to regularise is chosen by cross-validation.

    solution = solve([features, *augmented], labels, num_classes=10, seed=0)
    logits = features @ solution.weight.T + solution.bias

What a careful person does with scikit-learn: standardise the features, try ten strengths (LogisticRegressionCV's) in
five stratified folds of the training images, take the best and fit all of them. The standardisation is folded into the
weights, so that whoever uses them need not know of it.

Augmented draws are further rows of their images. All draws of an image weigh as much as one, so that a strength means
the same with and without them; it is chosen on the draws that are not augmented.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tlray.training.logistic import Basis, minimise

STRENGTHS = tuple(10.0 ** (-4 + 8 * step / 9) for step in range(10))  # LogisticRegressionCV's: inverse, of the sum
FOLDS = 5
# Strengths solved at once, until the last of them is not the best: the later ones take longest.
PORTIONS = (STRENGTHS[:5], STRENGTHS[5:7], STRENGTHS[7:])
FOLD_TOLERANCE = 1e-7  # nats of the whole loss of a fold: it only tells strengths apart
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


def solve(draws: Sequence[torch.Tensor], labels: torch.Tensor, num_classes: int, seed: int) -> Solution:
    """draws: features (N, D) float of the same images, the first not augmented; labels (N,) int64; on one device."""
    present, labels = torch.unique(labels, return_inverse=True)
    held_out = _held_out_losses(_standardised(draws[0])[0].rows, labels, len(present), seed)
    strength = min(held_out, key=lambda strength: held_out[strength]) if held_out else STRENGTHS[len(STRENGTHS) // 2]
    basis, mean, deviation = _standardised(torch.cat(list(draws)))
    labels = labels.repeat(len(draws))
    shares = torch.full((1, len(labels)), 1 / len(draws), dtype=torch.float64, device=labels.device)
    solved = minimise(basis.rows, labels, len(present), shares, shares.new_tensor([strength]))
    weights = (basis.axes @ solved.weights[0]) / deviation[:, None]  # (D, present)
    biases = solved.biases[0] - mean @ weights
    logits = basis.rows @ solved.weights[0] + solved.biases[0]
    weight = weights.mean(dim=1).expand(num_classes, -1).clone()
    bias = (biases.mean() - ABSENT).expand(num_classes).clone()
    weight[present], bias[present] = weights.T, biases
    return Solution(
        weight=weight.float(),
        bias=bias.float(),
        strength=strength,
        loss=float(torch.nn.functional.cross_entropy(logits, labels)),
        held_out=held_out,
    )


def _standardised(features: torch.Tensor) -> tuple[Basis, torch.Tensor, torch.Tensor]:
    mean, deviation = _moments(features)
    return Basis.of((features.double() - mean) / deviation), mean, deviation


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) float64; infinite where a feature is constant, which then has no weight."""
    mean = features.double().mean(dim=0)
    deviation = (features.double() - mean).square().mean(dim=0).sqrt()
    rounding = 1e-7 * features.double().abs().amax(dim=0)
    return mean, torch.where(deviation > rounding, deviation, torch.inf)


def _held_out_losses(rows: torch.Tensor, labels: torch.Tensor, num_classes: int, seed: int) -> dict[float, float]:
    """The mean cross-entropy, by strength, of images by models that have not seen them; empty without folds."""
    fold_of = torch.as_tensor(stratified_folds(labels.cpu().numpy(), seed), device=rows.device)
    losses: dict[float, float] = {}
    if int(fold_of.max()) < 1:
        return losses
    for some in PORTIONS:
        losses |= _losses_at(some, rows, labels, num_classes, fold_of)
        if min(losses, key=lambda strength: losses[strength]) != some[-1]:
            break
    return losses


def _losses_at(
    strengths: Sequence[float], rows: torch.Tensor, labels: torch.Tensor, num_classes: int, fold_of: torch.Tensor
) -> dict[float, float]:
    num_folds = int(fold_of.max()) + 1
    weights = (fold_of != torch.arange(num_folds, device=rows.device)[:, None]).double()  # (K, N)
    problems = [(strength, fold) for strength in strengths for fold in range(num_folds)]
    losses = dict.fromkeys(strengths, 0.0)
    for some in _portions(problems, _problem_bytes(rows, num_classes)):
        folds = torch.tensor([fold for _, fold in some], device=rows.device)
        asked = rows.new_tensor([strength for strength, _ in some])
        solved = minimise(rows, labels, num_classes, weights[folds], asked, FOLD_TOLERANCE)
        for place, (strength, fold) in enumerate(some):
            out = fold_of == fold
            logits = rows[out] @ solved.weights[place] + solved.biases[place]
            losses[strength] += float(torch.nn.functional.cross_entropy(logits, labels[out], reduction="sum"))
    return {strength: loss / int((fold_of >= 0).sum()) for strength, loss in losses.items()}


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


def _portions(problems: list[tuple[float, int]], bytes_each: int) -> list[list[tuple[float, int]]]:
    size = max(1, LARGEST_STACK // bytes_each)
    return [problems[start : start + size] for start in range(0, len(problems), size)]
