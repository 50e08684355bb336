"""A trial in this process: the same result twice, and nothing left behind."""

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from image_splits import split_folders

from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.manifest import make_manifest
from tlray.errors import DivergenceError
from tlray.models.backbone import build_backbone
from tlray.runs.predictions import load_probabilities
from tlray.runs.results import TrialResult
from tlray.runs.trials import read_recorded
from tlray.training import loop
from tlray.training.epoch import EpochMetrics
from tlray.training.step import train_step
from tlray.training.trial import TrialImages, load_trained, manifest_images, release_memory, run_trial, trial_folder
from tlray.training.worker import local_worker

NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)


@pytest.fixture(scope="module")
def images(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialImages:
    data = DataConfig(**split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=3, test=3))
    return manifest_images(make_manifest(data), data)


def make_trial(strategy: str = "full", **recipe: object) -> TrialConfig:
    return TrialConfig(
        trial_id="t",
        backbone=NETWORK,
        strategy=StrategyConfig.model_validate({"strategy": strategy}),
        recipe=Recipe.model_validate({"epochs": 4, "batch_size": 8, "lr": 0.003, "augmentation": "light", **recipe}),
        seed=0,
    )


def train(trial: TrialConfig, folder: Path, images: TrialImages, stop_after: int = 99) -> TrialResult | None:
    """Runs the trial, or dies in the report of epoch `stop_after` as a killed process would after its checkpoint."""

    def report(metrics: EpochMetrics) -> None:
        if metrics.epoch == stop_after:
            raise KeyboardInterrupt

    try:
        return run_trial(trial, str(folder), local_worker(), images, report)
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize("strategy", ["linear_probe", "gradual", "full"])
def test_a_trial_interrupted_at_any_epoch_ends_bit_for_bit_like_an_undisturbed_one(
    strategy: str, images: TrialImages, tmp_path: Path
) -> None:
    trial = make_trial(strategy)
    undisturbed = train(trial, tmp_path / "whole", images)
    assert undisturbed is not None
    for epoch in (1, 3):
        folder = tmp_path / f"stopped-{epoch}"
        assert train(trial, folder, images, stop_after=epoch) is None
        resumed = train(trial, folder, images)
        assert resumed is not None
        differs = {"seconds": 0, "peak_memory_bytes": 0, "checkpoint": None}
        assert resumed.model_copy(update=differs) == undisturbed.model_copy(update=differs)
        ours = load_trained(trial, str(folder), images.num_classes).model.state_dict()
        theirs = load_trained(trial, str(tmp_path / "whole"), images.num_classes).model.state_dict()
        assert all(ours[key].equal(theirs[key]) for key in theirs)


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_the_validation_predictions_that_a_trial_keeps_are_those_of_its_best_epoch(
    strategy: str, images: TrialImages, tmp_path: Path
) -> None:
    result = train(make_trial(strategy), tmp_path, images)
    recorded = read_recorded(str(tmp_path), "t")
    assert result is not None
    assert recorded is not None
    found = load_probabilities(str(tmp_path), recorded, "val")
    assert found is not None
    assert (found.logs.argmax(axis=1) == found.labels).mean() == pytest.approx(result.val_accuracy)
    assert -found.logs[range(len(found.labels)), found.labels].mean() == pytest.approx(result.val_loss, rel=1e-4)


def test_float16_and_patience_survive_an_interruption_too(images: TrialImages, tmp_path: Path) -> None:
    trial = make_trial(precision="float16", patience=1, lr=1e-7, epochs=6)
    undisturbed = train(trial, tmp_path / "whole", images)
    assert undisturbed is not None
    assert undisturbed.epochs < 6
    train(trial, tmp_path / "stopped", images, stop_after=1)
    resumed = train(trial, tmp_path / "stopped", images)
    assert resumed is not None
    assert (resumed.epochs, resumed.val_loss) == (undisturbed.epochs, undisturbed.val_loss)


def test_counts_say_how_many_images_went_through_frozen_blocks(images: TrialImages, tmp_path: Path) -> None:
    probe = train(make_trial("linear_probe"), tmp_path / "probe", images)
    full = train(make_trial("full"), tmp_path / "full", images)
    assert probe is not None
    assert full is not None
    assert probe.images_seen == full.images_seen == 4 * 18
    assert probe.prefix_images_computed == 4 * (18 + 9)
    assert full.prefix_images_computed == 0
    assert (probe.num_trainable_params or 0) < (full.num_trainable_params or 0) == full.num_params


def test_a_model_that_is_no_longer_needed_is_freed_although_its_trace_points_to_it() -> None:
    gc.disable()
    try:
        backbone = build_backbone(NETWORK, 3)
        model = weakref.ref(backbone.model)
        del backbone
        release_memory()
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("strategy", ["gradual", "full"])
def test_a_trial_killed_inside_an_epoch_goes_on_from_the_step_that_it_kept(
    strategy: str, images: TrialImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"checkpoint_steps": 2, "batch_size": 4, "freeze_bn": False, "precision": "float16"}
    trial = make_trial(strategy, **options)
    undisturbed = train(trial, tmp_path / "whole", images)
    assert undisturbed is not None

    per_epoch = math.ceil(undisturbed.images_seen / trial.recipe.epochs / trial.recipe.batch_size)
    steps: list[int] = []
    step = loop.train_step

    def killed_in_the_third_epoch(*arguments: Any, **keywords: Any) -> torch.Tensor:
        steps.append(len(steps))
        if len(steps) == 2 * per_epoch + 4:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    monkeypatch.setattr(loop, "train_step", killed_in_the_third_epoch)
    folder = tmp_path / "stopped"
    assert train(trial, folder, images) is None
    done = trial_folder(str(folder), "t").load_progress()
    assert (done.epoch, done.step) == (2, 2)
    resumed = train(trial, folder, images)
    assert resumed is not None
    assert len(steps) == 4 * per_epoch + 2  # the one that was killed, and the one before it, which was not kept
    differs = {"seconds": 0, "peak_memory_bytes": 0, "checkpoint": None}
    assert resumed.model_copy(update=differs) == undisturbed.model_copy(update=differs)
    ours = load_trained(trial, str(folder), images.num_classes).model.state_dict()
    theirs = load_trained(trial, str(tmp_path / "whole"), images.num_classes).model.state_dict()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert not list(Path(folder).rglob("*-step-*"))


def test_a_trial_that_diverges_in_a_lower_precision_is_repeated_in_float32_and_says_so(
    images: TrialImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*args: Any, precision: str, **rest: Any) -> torch.Tensor:
        loss = train_step(*args, precision=precision, **rest)
        return loss if precision == "float32" or len(epochs) < 2 else loss * math.inf

    epochs: list[int] = []
    monkeypatch.setattr(loop, "train_step", step)
    trial = make_trial(precision="bfloat16", epochs=3)
    result = run_trial(trial, str(tmp_path), local_worker(), images, lambda metrics: epochs.append(metrics.epoch))
    assert epochs == [1, 2, 1, 2, 3]
    assert result is not None
    assert result.params["precision"] == "float32"
    assert result.note is not None
    assert result.note.startswith("repeated in float32: in bfloat16 it diverged: the training loss of epoch 3 is inf")
    monkeypatch.undo()
    straight = train(make_trial(precision="float32", epochs=3), tmp_path / "float32", images)
    assert straight is not None
    assert (straight.val_loss, straight.test_accuracy, straight.note) == (result.val_loss, result.test_accuracy, None)


def test_what_diverges_in_float32_too_fails(
    images: TrialImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", lambda *args, **rest: torch.tensor(math.nan))
    with pytest.raises(DivergenceError, match=r"diverged: the training loss of epoch 1 is nan; lower lr"):
        run_trial(make_trial(precision="bfloat16"), str(tmp_path), local_worker(), images, lambda metrics: None)
