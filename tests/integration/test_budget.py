"""A sweep whose budget runs out: what has an epoch is scored and exported, the rest is left out and said to be."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from tlray.activations.location import open_store
from tlray.activations.stored import as_stored_now
from tlray.config import RunConfig
from tlray.distributed import sweep
from tlray.distributed.sweep import run_sweep
from tlray.planning.planner import plan_run
from tlray.runs.budget.clock import Budget
from tlray.runs.prepare import Run, load_run, new_run_uri, prepare_run
from tlray.runs.results import TrialResult
from tlray.runs.trials import load_results, write_trial_result
from tlray.workflows.conclude import conclude
from tlray.workflows.progress import SweepProgress

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
    monkeypatch.setattr(sweep, "open_budget", lambda run, began: Clock(run.uri))


class FasterThanPlanned(Budget):
    """No room for anything until two rows are there, then room for everything."""

    def __init__(self, run_uri: str) -> None:
        super().__init__(run_uri, limit=1e6)
        self._run_uri = run_uri

    def left(self) -> float:
        return 5.0 if len(load_results(self._run_uri)) < 2 else 1e5


class TooShort(Budget):
    """Never room for anything: less than starting a process takes."""

    def __init__(self, run_uri: str) -> None:
        super().__init__(run_uri, limit=1e6)

    def left(self) -> float:
        return 5.0


def make_run(make_config: MakeConfig, epochs: int = 5000, **fields: Any) -> Run:
    config = make_config(
        search_space={"lr": {"grid": [0.003, 0.001, 0.0003]}},
        training={"epochs": epochs, "batch_size": 8, "augmentation": "none"},
        baseline={"backbone": {"id": "timm/test_resnet", "weights": "none"}, "training": {"epochs": 1}},
        sweep={"scheduler": "fifo", "max_concurrent_trials": 1},
        export={"top_k": 1},
        **fields,
    )
    return prepare_run(plan_run(config), new_run_uri(config))


def as_if_slow(run: Run) -> Run:
    """The same run by whose plan a trial takes 100 seconds, and an image 10 to go through a frozen prefix."""
    estimate = run.plan.estimate
    assert estimate is not None
    costs = tuple(cost.model_copy(update={"seconds": 100.0, "overlapped_seconds": None}) for cost in estimate.costs)
    sources = tuple(source.model_copy(update={"prefix_seconds": 10.0}) for source in run.plan.activations)
    changes = {"activations": sources, "estimate": estimate.model_copy(update={"costs": costs})}
    return dataclasses.replace(run, plan=run.plan.model_copy(update=changes))


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


def test_time_that_the_chosen_trials_leave_goes_to_those_that_there_was_no_room_for(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "open_budget", lambda run, began: FasterThanPlanned(run.uri))
    run = as_if_slow(make_run(make_config, epochs=2))
    log = io.StringIO()
    with SweepProgress(run.trials, (), Console(file=log)) as progress:
        run_sweep(run, progress)
    rows = [row.trial_id.partition("-")[0] for row in load_results(run.uri)]
    assert sorted(rows[:2]) == ["000", "001"]
    assert sorted(rows) == ["000", "001", "002", "003"]
    assert Budget(run.uri, 1.0).dropped == ()
    assert "2 trials wait: the budget may have no room for them" in log.getvalue()
    assert "left out" not in log.getvalue()


def test_frozen_work_that_there_is_no_time_for_is_not_done_and_its_readers_are_left_out(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "open_budget", lambda run, began: TooShort(run.uri))
    run = make_run(
        make_config,
        epochs=2,
        backbones=[{"id": "timm/test_resnet", "weights": "none", "input_size": size} for size in (32, 48)],
        strategies=[{"strategy": "linear_probe", "solver": "gradient"}, {"strategy": "partial", "trainable_blocks": 1}],
        activations={"materialise": "always"},
    )
    run = as_if_slow(run)
    with SweepProgress(run.trials, (), Console(quiet=True)) as progress:
        run_sweep(run, progress)
    small = {trial.trial_id for trial in run.trials if trial.backbone.input_size == 32 and not trial.is_baseline}
    rows = {row.trial_id: row for row in load_results(run.uri)}
    assert {row.strategy for row in rows.values()} == {"linear_probe", "scratch"}
    assert rows.keys() - {"000-baseline"} < small
    assert {*rows, *Budget(run.uri, 1.0).dropped} == {trial.trial_id for trial in run.trials}

    sources = as_stored_now(run.plan.activations, run.manifest, open_store(run.config))
    assert {source.backbone.input_size for source in sources if source.num_stored} == {32}
    assert all(source.num_stored == source.num_draws for source in sources if source.backbone.input_size == 32)
    assert sum(row.prefix_images_computed for row in rows.values()) == max(source.num_draws for source in sources)


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
