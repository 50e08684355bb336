"""AdamW and SGD for T stacked heads, each row with its own rate, schedule, weight decay, momentum and clipping.

    optimizer = StackedOptimizer(recipes, heads.parameters, heads.decays)
    optimizer.step(heads.parameters, gradients, step, steps_per_epoch)      # updates the parameters in place

Every row gets what `torch.optim` would give it alone through the parameter groups of `optim.make_optimizer`: the rate
is lr x head_lr_mult, and biases do not decay. Parameters, gradients and moments are (T, ...).
"""

import math
from collections.abc import Mapping, Sequence

import torch

from tlray.config import Recipe
from tlray.training.optim import rate_factor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW's own
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_
CACHED_NUMBERS = 131_072  # of a parameter, updated in one go: its moments and gradient then stay in a CPU's cache


class StackedOptimizer:
    """The moments of T heads of one optimizer kind, and what each row's recipe says of it."""

    def __init__(
        self, recipes: Sequence[Recipe], parameters: Mapping[str, torch.Tensor], decays: Mapping[str, bool]
    ) -> None:
        kinds = {recipe.optimizer for recipe in recipes}
        assert len(kinds) == 1, "the rows of a group share their optimizer"
        self.decays = dict(decays)
        names = ("momentum_buffer",) if kinds == {"sgd"} else ("exp_avg", "exp_avg_sq")
        self.moments = {
            name: {key: torch.zeros_like(tensor, requires_grad=False) for key, tensor in parameters.items()}
            for name in names
        }
        self._set_recipes(recipes)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone (positions, int64)."""
        self.moments = {
            name: {key: tensor[rows] for key, tensor in moments.items()} for name, moments in self.moments.items()
        }
        self._set_recipes([self._recipes[row] for row in rows.tolist()])

    def load(self, recipes: Sequence[Recipe], moments: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Replace all rows by these."""
        self.moments = {name: {key: moments[name][key].clone() for key in self.moments[name]} for name in self.moments}
        self._set_recipes(recipes)

    def rates(self, step: int, steps_per_epoch: int) -> torch.Tensor:
        """Each row's learning rate at optimisation step `step` (0-based) -> (T,) float64 on the CPU."""
        factors = [rate_factor(step, steps_per_epoch=steps_per_epoch, recipe=recipe) for recipe in self._schedules]
        return self._peak_rates * torch.tensor(factors, dtype=torch.float64)[self._schedule_of]

    def step(
        self,
        parameters: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        step: int,
        steps_per_epoch: int,
    ) -> None:
        """One update at optimisation step `step` (0-based, which is also how many updates there were before)."""
        rates = self.rates(step, steps_per_epoch)
        if self._clips:
            gradients = self._clipped(gradients)
        with torch.no_grad():
            for key, parameter in parameters.items():
                moments = [self.moments[name][key] for name in self.moments]
                decay = self._weight_decay if self.decays[key] else torch.zeros_like(self._weight_decay)
                if len(moments) == 1:
                    _update_sgd(parameter, gradients[key], moments[0], rates, decay, self._momentum)
                else:
                    _update_adamw(parameter, gradients[key], moments[0], moments[1], rates, decay, step + 1)

    def _set_recipes(self, recipes: Sequence[Recipe]) -> None:
        """Rows with the same schedule share one evaluation of it."""

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        self._recipes = list(recipes)
        self._peak_rates = column([recipe.lr * recipe.head_lr_mult for recipe in recipes])
        self._weight_decay = column([recipe.weight_decay for recipe in recipes])
        self._momentum = column([recipe.momentum for recipe in recipes])
        self._largest_norm = column([recipe.gradient_clip or math.inf for recipe in recipes])
        self._clips = any(recipe.gradient_clip > 0 for recipe in recipes)
        schedules = {(recipe.schedule, recipe.warmup_epochs, recipe.epochs): recipe for recipe in recipes}
        places = {key: place for place, key in enumerate(schedules)}
        self._schedules = list(schedules.values())
        self._schedule_of = torch.tensor(
            [places[recipe.schedule, recipe.warmup_epochs, recipe.epochs] for recipe in recipes]
        )

    def _clipped(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every row's gradients scaled to its largest norm, over all its parameters together."""
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
        largest = self._largest_norm.to(norms)
        clipped = {}
        for key, gradient in gradients.items():
            scale = torch.where(largest.isfinite(), (largest / (norms + CLIP_EPSILON)).clamp(max=1.0), 1.0)
            clipped[key] = gradient * _by_row(scale, gradient)
        return clipped


def _update_adamw(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    rates: torch.Tensor,
    decay: torch.Tensor,
    count: int,
) -> None:
    """Loshchilov & Hutter, 2019; `count` updates with this one. Both corrections of the bias are in the rate."""
    correction = math.sqrt(1 - BETA2**count)
    shrink = _by_row((1 - rates * decay).to(parameter), parameter)
    rate = _by_row((-rates * correction / (1 - BETA1**count)).to(parameter), parameter)
    for rows in _cached_rows(parameter):
        exp_avg[rows].lerp_(gradient[rows], 1 - BETA1)
        exp_avg_sq[rows].mul_(BETA2).addcmul_(gradient[rows], gradient[rows], value=1 - BETA2)
        size = exp_avg_sq[rows].sqrt().add_(EPSILON * correction)
        parameter[rows].mul_(shrink[rows]).addcdiv_(exp_avg[rows] * rate[rows], size)


def _update_sgd(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    momentum_buffer: torch.Tensor,
    rates: torch.Tensor,
    decay: torch.Tensor,
    momentum: torch.Tensor,
) -> None:
    """Heavy-ball momentum as in torch.optim.SGD, whose weight decay is a part of the gradient."""
    shrink = _by_row(decay.to(parameter), parameter)
    keeps = _by_row(momentum.to(parameter), parameter)
    rate = _by_row(-rates.to(parameter), parameter)
    for rows in _cached_rows(parameter):
        momentum_buffer[rows].mul_(keeps[rows]).add_(gradient[rows]).add_(parameter[rows] * shrink[rows])
        parameter[rows].add_(momentum_buffer[rows] * rate[rows])


def _by_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(T,) -> (T, 1, ...), on the device of `like`, (T, ...)."""
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _cached_rows(parameter: torch.Tensor) -> list[slice]:
    """All rows, in portions that fit into a cache; on a GPU one portion."""
    num_rows = len(parameter)
    portion = max(1, CACHED_NUMBERS * num_rows // parameter.numel()) if parameter.device.type == "cpu" else num_rows
    return [slice(start, start + portion) for start in range(0, num_rows, portion)]
