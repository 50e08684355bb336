"""AdamW and SGD for T stacked heads, each row with its own rate, schedule, weight decay, momentum and clipping.

    optimizer = StackedOptimizer(recipes, heads.parameters, heads.decays)
    factors = optimizer.factors(first_step, num_steps, steps_per_epoch, device)     # of a whole epoch
    optimizer.step(heads.parameters, gradients, factors.at(0))                      # updates the parameters in place

Every row gets what `torch.optim` would give it alone through the parameter groups of `optim.make_optimizer`: the rate
is lr x head_lr_mult, and biases do not decay. Parameters, gradients and moments are (T, ...).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tlray.config import Recipe
from tlray.training.optim import rate_factor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW's own
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_
CACHED_NUMBERS = 131_072  # of a parameter, updated in one go: its moments and gradient then stay in a CPU's cache


@dataclass(frozen=True)
class Factors:
    """What updates multiply with, of the parameters' type and on their device: of S steps in a row, or of a single one.

    In tables, a GPU needs nothing of the host between two steps.
    """

    rate: torch.Tensor  # (S, T), or (T,), negative
    shrink: torch.Tensor  # adamw: (S, T) or (T,), by which the weights that decay are multiplied; sgd: (T,), the decay
    epsilon: torch.Tensor | None = None  # adamw: (S,) or ()
    count: torch.Tensor | None = None  # adamw on a GPU: (S,) or (), updates with this one
    lr: torch.Tensor | None = None  # adamw on a GPU: (S, T) or (T,), positive, without the corrections of the bias

    def at(self, step: int | torch.Tensor) -> "Factors":
        """Of one step of the table; a tensor () int64 says which without the host knowing."""
        if self.epsilon is None:
            return Factors(_row(self.rate, step), self.shrink)
        count = None if self.count is None else _row(self.count, step)
        lr = None if self.lr is None else _row(self.lr, step)
        return Factors(_row(self.rate, step), _row(self.shrink, step), _row(self.epsilon, step), count, lr)

    def overwrite(self, other: "Factors") -> None:
        """Take over another table of the same shape, in place."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)

    def tensors(self) -> list[torch.Tensor]:
        every = (self.rate, self.shrink, self.epsilon, self.count, self.lr)
        return [tensor for tensor in every if tensor is not None]


def _row(table: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
    return table[step] if isinstance(step, int) else table.index_select(0, step.reshape(1)).squeeze(0)


class StackedOptimizer:
    """The moments of T heads of one optimizer kind, and what each row's recipe says of it."""

    def __init__(
        self, recipes: Sequence[Recipe], parameters: Mapping[str, torch.Tensor], decays: Mapping[str, bool]
    ) -> None:
        kinds = {recipe.optimizer for recipe in recipes}
        assert len(kinds) == 1, "the rows of a group share their optimizer"
        self.decays = dict(decays)
        some = next(iter(parameters.values()))
        self._device, self._dtype = some.device, some.dtype
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

    def factors(self, first: int, count: int, steps_per_epoch: int, device: torch.device) -> Factors:
        """What the updates at optimisation steps first, first + 1, … multiply with (0-based: as many went before)."""
        steps = range(first, first + count)
        rates = torch.stack([self.rates(step, steps_per_epoch) for step in steps])
        if len(self.moments) == 1:
            return Factors((-rates).to(device, self._dtype), self._weight_decay.to(device, self._dtype))
        corrections = [math.sqrt(1 - BETA2 ** (step + 1)) for step in steps]  # of the bias, both in the rate
        column = torch.tensor(corrections, dtype=torch.float64)[:, None]
        of_first = torch.tensor([1 - BETA1 ** (step + 1) for step in steps], dtype=torch.float64)[:, None]
        return Factors(
            rate=(-rates * column / of_first).to(device, self._dtype),
            shrink=(1 - rates * self._weight_decay).to(device, self._dtype),
            epsilon=(EPSILON * column[:, 0]).to(device, self._dtype),
            count=None if device.type == "cpu" else torch.arange(first + 1, first + count + 1.0, device=device),
            lr=None if device.type == "cpu" else rates.to(device, self._dtype),
        )

    def step(
        self, parameters: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], factors: Factors
    ) -> None:
        """One update by the factors of one step."""
        if self._clips:
            gradients = self._clipped(gradients)
        with torch.no_grad():
            for key, parameter in parameters.items():
                moments = [self.moments[name][key] for name in self.moments]
                if len(moments) == 1:
                    shrink = factors.shrink if self.decays[key] else None
                    _update_sgd(parameter, gradients[key], moments[0], factors.rate, shrink, self._momentum)
                else:
                    shrink = factors.shrink if self.decays[key] else None
                    _update_adamw(parameter, gradients[key], moments[0], moments[1], factors, shrink)

    def _set_recipes(self, recipes: Sequence[Recipe]) -> None:
        """Rows with the same schedule share one evaluation of it."""

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        self._recipes = list(recipes)
        self._peak_rates = column([recipe.lr * recipe.head_lr_mult for recipe in recipes])
        self._weight_decay = column([recipe.weight_decay for recipe in recipes])
        norms = [recipe.gradient_clip or math.inf for recipe in recipes]
        self._momentum = column([recipe.momentum for recipe in recipes]).to(self._device, self._dtype)
        self._largest_norm = column(norms).to(self._device, self._dtype)
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
    factors: Factors,
    shrink: torch.Tensor | None,
) -> None:
    """Loshchilov & Hutter, 2019. Both corrections of the bias are in the rate."""
    assert factors.epsilon is not None
    if parameter.is_cuda:
        _update_adamw_fused(parameter, gradient, exp_avg, exp_avg_sq, factors, shrink)
        return
    rate = _by_row(factors.rate, parameter)
    for rows in _cached_rows(parameter):
        exp_avg[rows].lerp_(gradient[rows], 1 - BETA1)
        exp_avg_sq[rows].mul_(BETA2).addcmul_(gradient[rows], gradient[rows], value=1 - BETA2)
        size = exp_avg_sq[rows].sqrt().add_(factors.epsilon)
        if shrink is not None:
            parameter[rows].mul_(_by_row(shrink, parameter)[rows])
        parameter[rows].addcdiv_(exp_avg[rows] * rate[rows], size)


def _update_adamw_fused(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    factors: Factors,
    shrink: torch.Tensor | None,
) -> None:
    """The same by torch's own kernel, which knows a single rate: it writes down the direction, of rate 1.

    Heads are so many numbers that an update is as fast as they come from memory: 13 times each, not 20.
    """
    assert factors.count is not None
    assert factors.lr is not None
    direction = torch.zeros_like(parameter)
    torch._fused_adamw_(
        [direction],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [factors.count],
        lr=1.0,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )
    if shrink is not None:
        parameter.mul_(_by_row(shrink, parameter))
    parameter.addcmul_(direction, _by_row(factors.lr, parameter))


def _update_sgd(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    momentum_buffer: torch.Tensor,
    rates: torch.Tensor,
    decay: torch.Tensor | None,
    momentum: torch.Tensor,
) -> None:
    """Heavy-ball momentum as in torch.optim.SGD, whose weight decay is a part of the gradient."""
    keeps = _by_row(momentum.to(parameter), parameter)
    rate = _by_row(rates, parameter)
    for rows in _cached_rows(parameter):
        momentum_buffer[rows].mul_(keeps[rows]).add_(gradient[rows])
        if decay is not None:
            momentum_buffer[rows].add_(parameter[rows] * _by_row(decay, parameter)[rows])
        parameter[rows].add_(momentum_buffer[rows] * rate[rows])


def _by_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(T,) -> (T, 1, ...), on the device of `like`, (T, ...)."""
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _cached_rows(parameter: torch.Tensor) -> list[slice]:
    """All rows, in portions that fit into a cache; on a GPU one portion."""
    num_rows = len(parameter)
    portion = max(1, CACHED_NUMBERS * num_rows // parameter.numel()) if parameter.device.type == "cpu" else num_rows
    return [slice(start, start + portion) for start in range(0, num_rows, portion)]
