"""Learning rates by depth, and the schedule against PyTorch's own."""

import pytest
import torch

from tlray.config import Recipe
from tlray.models.freeze import ParameterGroup
from tlray.training.optim import make_optimizer, rate_factor, set_rate


def groups() -> list[ParameterGroup]:
    def one() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.ones(2))]

    return [
        ParameterGroup(depth=2, weight_decay=True, parameters=one()),
        ParameterGroup(depth=0, weight_decay=True, parameters=one()),
        ParameterGroup(depth=0, weight_decay=False, parameters=one()),
        ParameterGroup(depth=1, weight_decay=True, parameters=one()),
    ]


def test_rates_fall_with_the_distance_from_the_head() -> None:
    recipe = Recipe(lr=0.1, head_lr_mult=10, layer_decay=0.5, weight_decay=0.3)
    optimizer = make_optimizer(groups(), recipe)
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1.0, 0.3), (1.0, 0.0), (0.05, 0.3), (0.025, 0.3)]


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_recipe_names_the_optimizer(name: str, kind: type) -> None:
    optimizer = make_optimizer(groups(), Recipe(optimizer=name, momentum=0.8))
    assert type(optimizer) is kind
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8


def test_the_cosine_is_that_of_pytorch() -> None:
    recipe = Recipe(lr=0.1, epochs=4)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=20)
    for step in range(20):
        factor = rate_factor(step, steps_per_epoch=5, recipe=recipe)
        assert 0.1 * factor == pytest.approx(reference.param_groups[0]["lr"], abs=1e-9)
        reference.step()
        schedule.step()


def test_warm_up_rises_in_equal_steps_and_meets_the_schedule() -> None:
    recipe = Recipe(epochs=3, warmup_epochs=1, schedule="constant")
    factors = [rate_factor(step, steps_per_epoch=4, recipe=recipe) for step in range(12)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 8)


def test_set_rate_scales_every_group_from_its_own_peak() -> None:
    optimizer = make_optimizer(groups(), Recipe(lr=0.1, head_lr_mult=10, layer_decay=0.5))
    set_rate(optimizer, 0.5)
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.025, 0.0125]
