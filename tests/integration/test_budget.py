"""A sweep whose budget runs out: what has an epoch is scored and exported, the rest is left out and said to be."""

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from tlray.budget.clock import Budget
from tlray.conclude import conclude
from tlray.config import RunConfig
from tlray.distributed import sweep
from tlray.distributed.sweep import run_sweep
from tlray.planning import plan_run
from tlray.prepare import Run, load_run, new_run_uri, prepare_run
from tlray.progress import SweepProgress
from tlray.results import TrialResult, load_results, write_trial_result

MakeConfig = Callable[..., RunConfig]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


class Clock(Budget):
    """A budget that ends when it is told to."""

    ended = False

    def __init__(self, run_uri: str) -> None:
        super().__init__(run_uri, limit=1e6)

    def left(self) -> float:
        return -1.0 if type(self).ended else 1e5


class EndsTheTime(SweepProgress):
    """Ends the budget when the second epoch of the first trial is over."""

    def epoch_ended(self, trial_id: str, metrics: dict[str, Any]) -> None:
        super().epoch_ended(trial_id, metrics)
        Clock.ended |= trial_id.startswith("001") and metrics["epoch"] >= 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "ended", False)
    monkeypatch.setattr(sweep, "open_budget", lambda run: Clock(run.uri))


def make_run(make_config: MakeConfig, **fields: Any) -> Run:
    config = make_config(
        search_space={"lr": {"grid": [0.003, 0.001, 0.0003]}},
        training={"epochs": 5000, "batch_size": 8, "augmentation": "none"},
        baseline={"backbone": {"id": "timm/test_resnet", "weights": "none"}, "training": {"epochs": 1}},
        sweep={"scheduler": "fifo", "max_concurrent_trials": 1},
        export={"top_k": 1},
        **fields,
    )
    return prepare_run(plan_run(config), new_run_uri(config))


def test_when_the_time_is_over_the_best_so_far_is_exported_and_a_resume_does_not_go_on(
    make_config: MakeConfig, clock: None
) -> None:
    run = make_run(make_config)
    with EndsTheTime(run.trials, (), Console(quiet=True)) as progress:
        run_sweep(run, progress)
    rows = {row.trial_id.partition("-")[0]: row for row in load_results(run.uri)}
    assert set(rows) == {"000", "001"}
    assert rows["000"].status == "completed"
    assert rows["001"].status == "stopped"
    assert 2 <= rows["001"].epochs < 5000
    dropped = Budget(run.uri, 1.0).dropped
    assert [trial_id.partition("-")[0] for trial_id in dropped] == ["002", "003"]

    outcome = conclude(load_run(run.uri), Console(quiet=True))
    assert len(outcome.exports) == 1
    assert load_run(run.uri).is_done

    with SweepProgress(run.trials, (), Console(quiet=True)) as progress:
        run_sweep(load_run(run.uri), progress)
    assert {row.trial_id.partition("-")[0] for row in load_results(run.uri)} == {"000", "001"}


def test_a_number_of_trials_is_kept_and_the_others_are_named(make_config: MakeConfig) -> None:
    run = make_run(make_config, budget={"trials": 1})
    assert run.plan.estimate is not None
    assert [trial_id.partition("-")[0] for trial_id in run.plan.estimate.dropped] == ["002", "003"]
    for trial in run.trials[:2]:  # finished already, so that nothing is left to train
        write_trial_result(
            run.uri,
            TrialResult(
                trial_id=trial.trial_id,
                backbone=trial.backbone.id,
                weights="none",
                strategy="full",
                params={},
                seed=0,
                is_baseline=trial.is_baseline,
                status="completed",
                val_accuracy=0.5,
                test_accuracy=0.5,
            ),
        )
    with SweepProgress(run.trials, (), Console(quiet=True)) as progress:
        run_sweep(run, progress)
    assert {row.trial_id for row in load_results(run.uri)} == {trial.trial_id for trial in run.trials[:2]}
    assert [trial_id.partition("-")[0] for trial_id in Budget(run.uri, 1.0).dropped] == ["002", "003"]
