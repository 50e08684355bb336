"""A retraining whose sweep trains nothing: the run folder it leaves is real, so is everything around it."""

import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_bundle import fake_bundle
from rich.console import Console

from tlray import storage
from tlray.config import RunConfig, WarmStart
from tlray.config.search_space import list_trials
from tlray.data.manifest import Manifest, make_manifest
from tlray.errors import TrialError
from tlray.runs.champion import Candidate, Champion
from tlray.runs.plan import Plan, PlannedRun
from tlray.runs.prepare import Run, load_run, prepare_run
from tlray.workflows.retrain.flow import retrain
from tlray.workflows.retrain.record import Record
from tlray.workflows.retrain.verdict import Verdict

NETWORK = "timm/test_resnet"


@dataclass
class World:
    """What stands in for cluster, sweep and duel, and what was asked of it."""

    folder: Path  # images/ and runs/ lie in it
    better: bool = True  # the next challenger
    swept: list[RunConfig] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    fought: list[int | None] = field(default_factory=list)  # numbers of the champions that challengers met
    connected: int = 0
    output: io.StringIO = field(default_factory=io.StringIO)
    fails: bool = False  # the sweep, in its middle
    during_the_sweep: Callable[[], None] = lambda: None

    @property
    def home(self) -> str:
        return str(self.folder / "runs" / "birds")

    def config(self, **fields: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "name": "birds",
                "storage": str(self.folder / "runs"),
                "data": {"train": str(self.folder / "images"), "val_fraction": 0.25, "test_fraction": 0.25},
                "backbones": [NETWORK],
                "strategies": ["linear_probe"],
                **fields,
            }
        )

    def retrain(self, **fields: Any) -> Record:
        return retrain(self.config(**fields), Console(file=self.output, width=40))

    def connect(self) -> None:
        self.connected += 1

    def sweep(self, config: RunConfig, run_uri: str, console: Console, manifest: Manifest) -> None:
        self.swept.append(config)
        plan = Plan(
            name=config.name,
            num_classes=len(manifest.classes),
            num_images={},
            num_bad_images=0,
            trials=(),
            total_epochs=0,
            total_image_passes=0,
        )
        run = prepare_run(PlannedRun(config, manifest, tuple(list_trials(config)), plan), run_uri)
        self._train(run)

    def resume(self, run_uri: str, console: Console) -> None:
        self.resumed.append(run_uri)
        self._train(load_run(run_uri))

    def _train(self, run: Run) -> None:
        self.during_the_sweep()
        if self.fails:
            raise TrialError("the power is gone")
        fake_bundle(f"{run.uri}/exports/1-test_resnet", run.trials[1].trial_id)
        storage.write_text(f"{run.uri}/DONE", "{}")

    def duel(self, config: RunConfig, run: Run, champion: Champion | None, cause: str, seconds: float) -> Record:
        self.fought.append(champion.number if champion is not None else None)
        trial = run.trials[1]
        challenger = Candidate(
            export=f"{run.uri}/exports/1-test_resnet",
            run=run.uri,
            trial_id=trial.trial_id,
            backbone=trial.backbone.id,
            strategy=trial.strategy.label,
            params=trial.recipe.model_dump(),
            classes=run.manifest.classes,
            metrics={"test_accuracy": 0.5},
            fingerprint=run.manifest.fingerprint,
            start=WarmStart(backbone=trial.backbone, strategy=trial.strategy, training=trial.recipe),
        )
        return Record(
            name=config.name,
            run=run.uri,
            cause=cause,
            champion=champion,
            challenger=challenger,
            outcome="first" if champion is None else "promoted" if self.better else "refused",
            verdict=None if champion is None else verdict(promote=self.better),
            left_out=0,
            num_images={"train": 1, "val": 1, "test": 1},
            growth=None,
            drift=None,
            prefix_images_computed=0,
            seconds=seconds,
            settings=config.retrain,
            warm_start=run.config.warm_start is not None,
        )


def verdict(*, promote: bool) -> Verdict:
    return Verdict(
        promote=promote,
        reasons=("better" if promote else "not better",),
        num_images=100,
        challenger_accuracy=0.9 if promote else 0.7,
        champion_accuracy=0.8,
        difference=0.1 if promote else -0.1,
        difference_low=0.0,
        difference_high=0.0,
        only_challenger=10,
        only_champion=0,
        p_value=0.001,
        classes=(),
        judged=(),
    )


@pytest.fixture
def world(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everything between the cause and the verdict replaced; 36 images of three classes."""
    pytest.importorskip("ray")
    import tlray.distributed.cluster
    import tlray.distributed.manifest_pass
    import tlray.workflows.run

    shutil.copytree(image_folder, tmp_path / "images")
    made = World(tmp_path)
    monkeypatch.setattr(tlray.distributed.cluster, "connect", made.connect)
    monkeypatch.setattr(
        tlray.distributed.manifest_pass,
        "make_manifest_on_cluster",
        lambda config, earlier, progress: make_manifest(config.data),
    )
    monkeypatch.setattr(tlray.workflows.run, "run", made.sweep)
    monkeypatch.setattr(tlray.workflows.run, "resume", made.resume)
    monkeypatch.setattr("tlray.catalogue.resolve_id", lambda backbone_id: backbone_id)
    duel = ModuleType("tlray.workflows.retrain.duel")  # the real one, and resolving ids, would import torch
    monkeypatch.setattr(duel, "make_record", made.duel, raising=False)
    monkeypatch.setitem(sys.modules, "tlray.workflows.retrain.duel", duel)
    return made
