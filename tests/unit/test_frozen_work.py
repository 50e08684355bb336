"""Which backbones get their frozen work when time is short; nothing is computed, and no Ray starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plans import empty_plan
from tlray.activations.planned import ActivationSource
from tlray.config import BackboneConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.runs.budget.clock import Budget
from tlray.runs.budget.estimate import TrialCost, estimate_run
from tlray.runs.budget.machines import Machines
from tlray.runs.prepare import Run

pytest.importorskip("ray")

from tlray.distributed import frozen_work
from tlray.distributed.budget_stopper import BudgetStopper
from tlray.distributed.frozen_work import FrozenWork

DRAWS = 100  # of each backbone


def source(name: str) -> ActivationSource:
    """3 s of frozen work, as planned."""
    return ActivationSource(
        backbone=BackboneConfig(id=name),
        seed=0,
        num_frozen=9,
        num_blocks=10,
        last_block="b",
        augmentation="none",
        views=1,
        trials=(name,),
        with_test=True,
        bytes_per_image=1000,
        num_draws=DRAWS,
        num_stored=0,
        num_reads=1000,
        decode_seconds=0.01,
        prefix_seconds=0.02,
        materialise_seconds=3.0,
        recompute_seconds=30.0,
        materialise=True,
        reason="",
        keys=(),
    )


class Setting:
    """Three backbones with a trial each, a clock, and a pass that only takes time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds_of_a_pass, self.computed = 0.0, 3.0, [set[str]()]
        self.stored: set[str] = set()
        trials = tuple(
            TrialConfig(
                trial_id=name,
                backbone=BackboneConfig(id=name),
                strategy=StrategyConfig(strategy="full" if name in ("whole", "000-baseline") else "linear_probe"),
                recipe=Recipe(),
                seed=0,
                is_baseline=name == "000-baseline",
            )
            for name in ("000-baseline", "a", "b", "c", "whole")
        )
        config = RunConfig.model_validate({"name": "x", "data": {"train": "d"}, "backbones": ["a"]})
        costs = [TrialCost(trial_id=trial.trial_id, seconds=1.0, group=None) for trial in trials]
        machines = Machines(concurrent_trials=1, process_seconds=10)
        plan = empty_plan(
            activations=tuple(source(name) for name in ("a", "b", "c")),
            estimate=estimate_run((), costs, (), machines, config.export, None),
        )
        self.run = Run(str(folder), config, Manifest(("x", "y"), (), ()), trials, plan)
        monkeypatch.setattr(frozen_work, "compute_activations", self.compute)
        monkeypatch.setattr(frozen_work, "as_stored_now", self.as_stored_now)
        monkeypatch.setattr(frozen_work, "time", SimpleNamespace(monotonic=lambda: self.now))

    def compute(self, run: Run, store: Any, tasks: Any, progress: Any, readers: Any, left: Any) -> dict[str, str]:
        ids = {trial.trial_id for trial in readers}
        new = ids - self.stored - {"000-baseline", "whole"}
        self.computed.append(new)
        for name in sorted(new):
            taken = min(self.seconds_of_a_pass, max(0.0, left()))
            self.now += taken
            if taken == self.seconds_of_a_pass:
                self.stored.add(name)
        return {}

    def as_stored_now(self, sources: Any, manifest: Any, store: Any) -> list[Any]:
        return [
            one.model_copy(update={"num_stored": DRAWS if one.backbone.id in self.stored else 0}) for one in sources
        ]

    def budget(self, limit: float) -> Budget:
        return Budget(self.run.uri, limit, 0.0, now=lambda: self.now)

    def remaining(self, budget: Budget) -> list[str]:
        work = FrozenWork(self.run, Any, Any, budget, SimpleNamespace(activations_computed=None))  # type: ignore[arg-type]
        return [trial.trial_id for trial in work.of(self.run.trials)]


BASELINE = 6 + 10 + 1  # seconds that are kept: Tune, a process and its training


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


def test_with_time_enough_every_backbone_is_computed_and_without_a_budget_all_at_once(setting: Setting) -> None:
    everything = ["000-baseline", "a", "b", "c", "whole"]
    assert setting.remaining(setting.budget(1000)) == everything
    assert setting.computed[1:] == [{"a"}, {"b"}, {"c"}]
    setting.stored.clear()
    assert setting.remaining(setting.budget(float("inf"))) == everything
    assert setting.computed[4:] == [{"a", "b", "c"}]


def test_a_slower_machine_has_fewer_backbones_each_of_them_whole_and_time_for_the_baseline(setting: Setting) -> None:
    setting.seconds_of_a_pass = 12.0
    budget = setting.budget(BASELINE + 28.0)
    assert setting.remaining(budget) == ["000-baseline", "a", "whole"]
    assert setting.stored == {"a"}
    assert budget.left() >= BASELINE


def test_a_pass_that_the_end_of_the_time_cuts_off_leaves_its_readers_out(setting: Setting) -> None:
    setting.seconds_of_a_pass = 60.0
    assert setting.remaining(setting.budget(BASELINE + 28.0)) == ["000-baseline", "whole"]
    assert setting.now == pytest.approx(BASELINE + 28.0), "the first backbone has all the time that there is"


def test_the_first_backbone_may_use_the_time_of_the_baseline_for_without_it_nothing_is_exported(
    setting: Setting,
) -> None:
    setting.seconds_of_a_pass = 40.0
    assert setting.remaining(setting.budget(BASELINE + 28.0)) == ["000-baseline", "a", "whole"]
    assert setting.stored == {"a"}


@pytest.mark.parametrize(
    ("can_conclude", "spent", "ends"), [(True, 101, True), (False, 101, False), (False, 106, True)]
)
def test_the_end_of_the_time_waits_a_moment_for_the_first_epochs_of_baseline_and_another_trial(
    tmp_path: Path, can_conclude: bool, spent: float, ends: bool
) -> None:
    now = [0.0]
    stopper = BudgetStopper(Budget(str(tmp_path), 100, now=lambda: now[0]), lambda: can_conclude)
    assert not stopper.stop_all()
    now[0] = spent
    assert stopper.stop_all() == ends


def test_a_trial_whose_next_epoch_would_not_end_in_time_is_stopped(tmp_path: Path) -> None:
    now = [0.0]
    stopper = BudgetStopper(Budget(str(tmp_path), 100, 10, now=lambda: now[0]), lambda: True)
    assert not stopper("t", {"seconds": 89.0})
    now[0] = 50.0
    assert stopper("t", {"seconds": 41.0})
    assert not stopper("t", {"seconds": 39.0})
