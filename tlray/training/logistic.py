"""Multinomial logistic regression, many problems on the same features at once: batched L-BFGS, preconditioned.

    basis = Basis.of(features)                                               # (N, D), centred columns
    solved = minimise(basis.rows, labels, num_classes, weights, strengths)   # P problems

N images, D features, C classes, P problems, R the rank of the features. A problem is the one of scikit-learn's
LogisticRegression(C): the weighted sum of the images' cross-entropies plus |W|^2 / (2 strength), the biases without a
penalty; of two classes, W is the difference of their rows, as there. Each problem has weights of its own for the images
(0: held out), so that folds and strengths share one product a step.

The method is L-BFGS (Nocedal, Mathematics of Computation 35, 1980) in coordinates where the second moments of the
features are diagonal. There Boehning's bound on the Hessian (Annals of the Institute of Statistical Mathematics 44,
1992), X'X / 2 + 1 / strength, is one number for each coordinate, and with it as the first metric, scaled by the last
step, most problems take 10 to 60 steps; where features are alike, weak strengths take some hundreds. A solution lies in
the span of the images, so that there are no more coordinates than images. All in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

MEMORY = 12  # pairs of steps and gradients that L-BFGS remembers
MOST_STEPS = 2000
TOLERANCE = 1e-9  # nats of the whole loss that a step would still gain: probabilities are then right to 1e-4
LEAST_RANK = 1e-12  # of the largest second moment: what is less is rounding
ENOUGH = 1e-4  # of the gain that the gradient promises (Armijo)
SHORTEST = 1e-10  # step, of the one that the method asks for


@dataclass(frozen=True)
class Basis:
    """Features in coordinates with diagonal second moments: features = rows @ axes.T."""

    rows: torch.Tensor  # (N, R) float64
    axes: torch.Tensor  # (D, R) float64, orthonormal columns

    @classmethod
    def of(cls, features: torch.Tensor) -> "Basis":
        """features (N, D) float64."""
        num_rows, width = features.shape
        if num_rows < width:
            moments, left = torch.linalg.eigh(features @ features.T)
            left, sizes = _significant(moments, left)
            return cls(left * sizes, (features.T @ left) / sizes)
        moments, axes = torch.linalg.eigh(features.T @ features)
        axes, _ = _significant(moments, axes)
        return cls(features @ axes, axes)


def _significant(moments: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = moments > LEAST_RANK * moments[-1].clamp(min=torch.finfo(moments.dtype).tiny)
    return vectors[:, kept], moments[kept].sqrt()


@dataclass(frozen=True)
class Solved:
    """Solutions of P problems."""

    weights: torch.Tensor  # (P, R, C) float64
    biases: torch.Tensor  # (P, C)
    steps: int  # of the slowest problem


def minimise(
    rows: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    weights: torch.Tensor,
    strengths: torch.Tensor,
    tolerance: float = TOLERANCE,
) -> Solved:
    """rows (N, R) float64 with diagonal second moments, labels (N,) int64, weights (P, N), strengths (P,)."""
    inputs = functional.pad(rows, (0, 1), value=1.0)  # the last column is the biases'
    decay = (1.0 if num_classes > 2 else 2.0) / strengths
    penalty = functional.pad(decay[:, None].expand(-1, rows.shape[1]), (0, 1))  # (P, R + 1)
    moments = weights @ inputs.square()  # (P, R + 1)
    problems = _Problems(inputs, labels, weights, penalty, num_classes)
    found = _lbfgs(problems, 1 / (moments / 2 + penalty), tolerance)
    return Solved(found.points[:, :-1], found.points[:, -1], found.steps)


@dataclass(frozen=True)
class _Problems:
    inputs: torch.Tensor  # (N, R + 1)
    labels: torch.Tensor  # (N,)
    weights: torch.Tensor  # (P, N)
    penalty: torch.Tensor  # (P, R + 1)
    num_classes: int

    def at(self, chosen: torch.Tensor) -> "_Problems":
        return _Problems(self.inputs, self.labels, self.weights[chosen], self.penalty[chosen], self.num_classes)

    def loss(self, points: torch.Tensor) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        """points (P, R + 1, C) -> losses (P,), and what gives their gradients (P, R + 1, C)."""
        num_problems, num_inputs, num_classes = points.shape
        logits = self.inputs @ points.transpose(0, 1).reshape(num_inputs, -1)
        logs = logits.view(-1, num_problems, num_classes).log_softmax(dim=2)  # (N, P, C)
        at_label = self.labels[:, None, None].expand(-1, num_problems, 1)
        entropy = -(logs.gather(2, at_label)[:, :, 0].T * self.weights).sum(dim=1)
        losses = entropy + (points.square().sum(dim=2) * self.penalty).sum(dim=1) / 2

        def gradients() -> torch.Tensor:
            residuals = logs.exp_().scatter_add_(2, at_label, torch.full_like(at_label, -1, dtype=logs.dtype))
            residuals *= self.weights.T[:, :, None]
            ascent = self.inputs.T @ residuals.reshape(len(self.labels), -1)
            return ascent.view(num_inputs, num_problems, num_classes).transpose(0, 1) + (
                points * self.penalty[:, :, None]
            )

        return losses, gradients


@dataclass(frozen=True)
class _Found:
    points: torch.Tensor  # (P, R + 1, C)
    steps: int


def _lbfgs(problems: _Problems, metric: torch.Tensor, tolerance: float) -> _Found:
    """Every problem from zero until its next step would gain less than `tolerance`; metric (P, R + 1)."""
    num_problems, num_inputs = metric.shape
    result = problems.inputs.new_zeros(num_problems, num_inputs, problems.num_classes)
    active = torch.arange(num_problems, device=result.device)
    points = result.clone()
    losses, derive = problems.loss(points)
    gradients = derive()
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for step in range(MOST_STEPS):
        directions = _directions(gradients, metric, pairs)
        slopes = _dot(gradients, directions)  # what a step gains, twice
        going = -slopes > 2 * tolerance
        if not bool(going.all()):
            result[active] = points
            if not bool(going.any()):
                return _Found(result, step)
            active, problems, metric = active[going], problems.at(going), metric[going]
            points, losses, gradients = points[going], losses[going], gradients[going]
            directions, slopes = directions[going], slopes[going]
            pairs = [(moved[going], turned[going], scale[going]) for moved, turned, scale in pairs]
        moved, losses, after = _search(problems, points, losses, directions, slopes)
        turned = after - gradients
        curvature = _dot(moved, turned)
        scale = torch.where(curvature > 0, 1 / curvature, 0.0)  # rounding may leave none: the pair says nothing then
        pairs = [*pairs[-MEMORY + 1 :], (moved, turned, scale)]
        points, gradients = points + moved, after
    result[active] = points
    return _Found(result, MOST_STEPS)


def _search(
    problems: _Problems, points: torch.Tensor, losses: torch.Tensor, directions: torch.Tensor, slopes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Halve the steps that gain too little -> the steps, losses and gradients behind them."""
    lengths = torch.ones_like(losses)
    while True:
        moved = directions * lengths[:, None, None]
        found, derive = problems.loss(points + moved)
        rounding = torch.finfo(losses.dtype).eps * losses.abs()
        short = ~(found <= losses + ENOUGH * lengths * slopes + 8 * rounding) & (lengths > SHORTEST)
        if not bool(short.any()):
            return moved, found, derive()
        lengths = torch.where(short, lengths / 2, lengths)


def _directions(
    gradients: torch.Tensor, metric: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The two loops over the remembered pairs (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4)."""
    directions = -gradients
    shares = []
    for moved, turned, scale in reversed(pairs):
        share = scale * _dot(moved, directions)
        directions = directions - share[:, None, None] * turned
        shares.append(share)
    directions = directions * metric[:, :, None]
    if pairs:  # the metric is a bound; the last step tells by how much the loss is flatter
        moved, turned, scale = pairs[-1]
        flatness = (turned.square().sum(dim=2) * metric).sum(dim=1) * scale
        directions = directions / torch.where(flatness > 0, flatness, 1.0)[:, None, None]
    for (moved, turned, scale), share in zip(pairs, reversed(shares), strict=True):
        directions = directions + (share - scale * _dot(turned, directions))[:, None, None] * moved
    return directions


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum(dim=(1, 2))
