"""Early stopping as Ray Tune asks for it; starts no Ray."""

from types import SimpleNamespace
from typing import Any

import pytest

from tlray.config import BackboneConfig, Recipe, StrategyConfig, SweepConfig, TrialConfig
from tlray.training.epoch import EpochMetrics

pytest.importorskip("ray")

from ray.tune.schedulers import TrialScheduler

from tlray.distributed.scheduler import make_scheduler

TRIALS = [
    TrialConfig(
        trial_id=name,
        backbone=BackboneConfig(id="a"),
        strategy=StrategyConfig(strategy="full"),
        recipe=Recipe(epochs=6),
        seed=0,
    )
    for name in ("a", "b")
]


def metrics(epoch: int, val_accuracy: float) -> EpochMetrics:
    rest = {"val_top5_accuracy": 1.0, "val_macro_f1": 0.5, "lr": 0.1, "seconds": 1.0, "images_per_second": 1.0}
    return EpochMetrics(epoch=epoch, train_loss=1.0, val_loss=1.0, val_accuracy=val_accuracy, **rest)


def tune_trial(trial_id: str) -> Any:
    return SimpleNamespace(trial_id="of Tune's", config={"trial": {"trial_id": trial_id}})


def decisions(sweep: SweepConfig, history: dict[str, tuple[EpochMetrics, ...]]) -> list[str]:
    """About trial b, whose accuracy is 0.5 all the time."""
    scheduler = make_scheduler(sweep, TRIALS, history)
    return [
        scheduler.on_trial_result(None, tune_trial("b"), {"epoch": epoch, "val_accuracy": 0.5})  # type: ignore[arg-type]
        for epoch in range(1, 7)
    ]


def test_a_trial_is_stopped_by_what_others_did_before_a_resume_from_the_end_of_its_grace_period_on() -> None:
    before = {"a": tuple(metrics(epoch, 0.9) for epoch in range(1, 7))}
    stop, go_on = TrialScheduler.STOP, TrialScheduler.CONTINUE
    assert decisions(SweepConfig(), before) == [go_on, stop, stop, stop, stop, go_on]
    assert decisions(SweepConfig(), {}) == [go_on] * 6
    assert decisions(SweepConfig(scheduler="fifo"), before) == [go_on] * 6
