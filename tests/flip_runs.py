"""A finished and an interrupted run with every kind of file, made in this process, without Ray.

config = make_config(folder);  finished, interrupted = make_finished(config), make_interrupted(config)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tlray.activations.local_pass import compute_here
from tlray.config import BackboneConfig, RunConfig
from tlray.planning.planner import plan_run
from tlray.ranking.result import RankedBackbone, Ranking, save_ranking
from tlray.runs.board import append_result, write_leaderboard
from tlray.runs.budget.clock import Budget
from tlray.runs.lease import hold_run
from tlray.runs.notes import leave_note
from tlray.runs.prepare import finish, new_run_uri, prepare_run
from tlray.training import midway
from tlray.training.checkpoint import TrialFolder
from tlray.training.probe_checkpoint import GroupFolder, Row
from tlray.training.run_images import run_images
from tlray.training.trial import run_trial
from tlray.training.worker import local_worker

RANKING = Ranking(
    score="knn",
    num_images=20,
    num_classes=2,
    largest_class=0.5,
    seconds=1.5,
    rows=(RankedBackbone(backbone=BackboneConfig(id="timm/test_resnet"), rank=1, chosen=True, scores={"knn": 0.75}),),
)


def make_images(folder: Path) -> Path:
    for label, colour in {"blue": (40, 60, 200), "red": (210, 50, 40)}.items():
        (folder / label).mkdir(parents=True)
        for index in range(12):
            pixels = np.random.default_rng(index).normal(colour, 40, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index:02}.png")
    (folder / "red" / "page.jpg").write_text("<html>")
    return folder


def make_config(folder: Path) -> RunConfig:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    return RunConfig.model_validate(
        {
            "name": "flips",
            "storage": str(folder / "runs"),
            "data": {"train": str(make_images(folder / "images")), "max_bad_fraction": 0.5},
            "backbones": [network],
            "strategies": [{"strategy": "linear_probe", "solver": "gradient"}],
            "training": {"epochs": 3, "batch_size": 8, "augmentation": "none", "checkpoint_steps": 1},
            "baseline": {"backbone": network},
        }
    )


def make_finished(config: RunConfig) -> Path:
    """A run of a baseline and a trial, but for its exports, with what rankings, budgets and repairs leave."""
    run_uri = new_run_uri(config)
    save_ranking(RANKING, run_uri)
    run = prepare_run(plan_run(config), run_uri)
    compute_here(
        run_uri, run.config, run.manifest, run.plan.activations, local_worker().device, lambda done, total: None
    )
    with hold_run(run_uri, "tests.flips"):
        pass  # leaves a lease that nobody holds
    for trial in run.trials:
        result = run_trial(trial, run_uri, local_worker(), run_images(run_uri), lambda metrics: None)
        assert result is not None
        append_result(run_uri, result)
    write_leaderboard(run_uri, seed=config.seed)
    finish(run)
    Budget(run_uri, 100.0).save()
    leave_note(run_uri, "trials/000-baseline: a note")
    return Path(run_uri)


class Killed(BaseException):
    pass


def make_interrupted(config: RunConfig) -> Path:
    """A run killed inside an epoch of its second trial, and inside the training of a group of probes."""
    run = prepare_run(plan_run(config), new_run_uri(config))
    baseline, trial = run.trials[:2]
    run_trial(baseline, run.uri, local_worker(), run_images(run.uri), lambda metrics: None)
    folder = TrialFolder(f"{run.uri}/trials/{trial.trial_id}")

    save = midway.MidwayFolder.save

    def save_and_die(self: Any, progress: Any, *arguments: Any) -> None:
        save(self, progress, *arguments)
        if progress.epoch == 2:
            raise Killed

    midway.MidwayFolder.save = save_and_die  # type: ignore[method-assign]
    try:
        run_trial(trial, run.uri, local_worker(), run_images(run.uri), lambda metrics: None)
    except Killed:
        pass
    finally:
        midway.MidwayFolder.save = save  # type: ignore[method-assign]
    group = GroupFolder(run.uri, trial.trial_id)
    for step in range(3):
        rows = [Row(one, folder.load_progress()) for one in run.trials]
        group.save(rows, {"parameters/w": torch.full((2, 8), float(step))}, "frozen")
    return Path(run.uri)
