"""Trials on activations: what they share, what a second run finds, what new images and other weights cost. No Ray."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tlray.activations.decision import within
from tlray.activations.local_pass import compute_here
from tlray.activations.location import Room
from tlray.config import BackboneConfig, RunConfig
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.split import SplitError
from tlray.planning.planner import plan_run
from tlray.runs.prepare import Run, new_run_uri, prepare_run
from tlray.runs.results import TrialResult
from tlray.training.epoch import EpochMetrics
from tlray.training.run_images import run_images
from tlray.training.trial import run_trial
from tlray.training.worker import local_worker

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
PLAIN = {"epochs": 3, "batch_size": 8, "lr": 0.003, "augmentation": "none"}
BY_GRADIENTS = {"strategy": "linear_probe", "solver": "gradient"}
RATES = {"search_space": {"lr": {"grid": [0.003, 0.01, 0.03]}}}
PARTIAL = {"strategy": "partial", "trainable_blocks": 2}
GRADUAL = {"strategy": "gradual", "unfreeze": {2: 2, 3: "all"}}
Losses = dict[str, list[tuple[float, float]]]
Execute = Callable[..., tuple[Run, dict[str, TrialResult], Losses]]


@pytest.fixture
def execute(image_folder: Path, tmp_path: Path) -> Execute:
    """Runs every trial but the baseline in this process, on activations unless told otherwise."""

    def run_all(**fields: Any) -> tuple[Run, dict[str, TrialResult], Losses]:
        config = RunConfig.model_validate(
            {
                "name": "test",
                "storage": str(tmp_path / "runs"),
                "data": {"train": str(image_folder), "val_fraction": 0.25, "test_fraction": 0.25},
                "backbones": [NETWORK],
                "training": PLAIN,
                "activations": {"materialise": "always"},
                "baseline": {"backbone": NETWORK},
                **fields,
            }
        )
        run = prepare_run(plan_run(config), new_run_uri(config))
        worker = local_worker()
        sources = run.plan.activations
        compute_here(run.uri, run.config, run.manifest, sources, worker.device, lambda done, total: None)
        rows: dict[str, TrialResult] = {}
        losses: Losses = {}
        for trial in run.trials[1:]:
            curve: list[tuple[float, float]] = []

            def report(metrics: EpochMetrics, curve: list[tuple[float, float]] = curve) -> None:
                curve.append((metrics.train_loss, metrics.val_loss))

            row = run_trial(trial, run.uri, worker, run_images(run.uri), report)
            assert row is not None
            rows[trial.trial_id], losses[trial.trial_id] = row, curve
        return run, rows, losses

    return run_all


def computed(rows: dict[str, TrialResult]) -> int:
    return sum(row.prefix_images_computed for row in rows.values())


def test_every_image_goes_through_a_frozen_prefix_once_for_all_trials_and_never_again(execute: Execute) -> None:
    strategies = [{"strategy": "linear_probe", **RATES}, PARTIAL]
    run, first, losses = execute(strategies=strategies)
    by_trial = [row.prefix_images_computed for row in first.values()]
    assert by_trial == [len(run.manifest.images), 0, 0, 0]  # both cuts out of one forward
    _, second, again = execute(strategies=strategies)
    assert computed(second) == 0
    assert again == losses


def test_without_materialising_every_trial_and_epoch_pays(execute: Execute) -> None:
    run, rows, _ = execute(strategies=[PARTIAL], activations={"materialise": "never"})
    per_epoch = len(run.manifest.split("train")) + len(run.manifest.split("val"))
    assert computed(rows) == 3 * per_epoch


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 2e-3)])
@pytest.mark.parametrize("network", ["timm/test_resnet", "timm/test_vit"])
def test_trials_on_activations_train_like_trials_on_images(
    network: str, dtype: str, tolerance: float, execute: Execute
) -> None:
    """float32 differs by the order of additions (batches of another size, folded norms), float16 by its rounding.

    An activation is stored to within 2^-11 of its value; losses of order 1 moved by up to 1e-3 over three epochs.
    """
    fields = {
        "backbones": [{**NETWORK, "id": network}],
        "strategies": [BY_GRADIENTS, PARTIAL, GRADUAL],
        "training": {**PLAIN, "lr": 0.001},
    }
    _, _, live = execute(**fields, activations={"materialise": "never"})
    _, _, kept = execute(**fields, activations={"materialise": "always", "dtype": dtype})
    for trial_id, curve in live.items():
        assert np.abs(np.array(kept[trial_id]) - np.array(curve)).max() < tolerance, trial_id


@pytest.mark.parametrize("network", ["timm/test_resnet", "timm/test_vit"])
def test_trials_on_rows_that_the_device_holds_are_those_on_rows_that_stream_in(
    network: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "backbones": [{**NETWORK, "id": network}],
        "strategies": [BY_GRADIENTS, PARTIAL],
        "training": {**PLAIN, "augmentation": "light", "views": 2},
    }
    _, streamed, losses = execute(**fields)
    monkeypatch.setattr("tlray.training.activations.room_on", lambda device: 10**9)
    _, held, same = execute(**fields)
    assert same == losses
    assert [row.test_accuracy for row in held.values()] == [row.test_accuracy for row in streamed.values()]


def test_views_are_drawn_once_for_the_training_images_alone(execute: Execute) -> None:
    training = {**PLAIN, "augmentation": "standard", "views": 3, "epochs": 4}
    run, rows, _ = execute(strategies=[BY_GRADIENTS], training=training)
    num = {split: len(run.manifest.split(split)) for split in ("train", "val", "test")}
    assert computed(rows) == 3 * num["train"] + num["val"] + num["test"]
    _, rows, _ = execute(strategies=[BY_GRADIENTS], training={**training, "views": 0})
    assert computed(rows) == 4 * (num["train"] + num["val"])


def test_batchnorm_statistics_that_follow_the_images_are_never_stored(execute: Execute) -> None:
    run, rows, _ = execute(strategies=[PARTIAL], training={**PLAIN, "freeze_bn": False})
    assert [source.materialise for source in run.plan.activations] == [False]
    assert "freeze_bn" in run.plan.activations[0].reason
    assert computed(rows) > 0


def test_a_backbone_that_cannot_be_split_is_recomputed_and_the_plan_says_why(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(backbone: Backbone, num_frozen: int) -> None:
        raise SplitError(f"{backbone.id} hands a list from block to block")

    monkeypatch.setattr("tlray.activations.decision.find_cut", refuse)
    run, rows, _ = execute(strategies=["linear_probe"])
    (source,) = run.plan.activations
    assert not source.materialise
    assert "hands a list from block to block" in source.reason
    assert computed(rows) == rows["001-test_resnet-linear_probe"].epochs * (
        len(run.manifest.split("train")) + len(run.manifest.split("val"))
    )


def test_what_does_not_fit_the_store_is_recomputed_the_least_useful_first(execute: Execute) -> None:
    strategies = [{"strategy": "linear_probe", **RATES}, PARTIAL]
    run, _, _ = execute(strategies=strategies)
    deep, shallow = (
        source.model_copy(update={"reason": "2.0x cheaper than recomputing"}) for source in run.plan.activations
    )
    assert deep.bytes_per_image < shallow.bytes_per_image
    room = Room(in_store=deep.num_draws * deep.bytes_per_image, on_disk=math.inf)
    kept = within([shallow, deep], room)
    assert [source.materialise for source in kept] == [False, True]
    assert "max_gb" in kept[0].reason
    assert all(source.materialise for source in within(run.plan.activations, room)), "always means always"
    stored = [source.model_copy(update={"num_stored": source.num_draws}) for source in (shallow, deep)]
    assert all(source.materialise for source in within(stored, Room(in_store=math.inf, on_disk=0)))


def test_only_new_images_are_computed_and_removed_ones_cost_nothing(
    execute: Execute, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "growing"
    for path in sorted(path for path in image_folder.rglob("*") if path.is_file()):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    data = {"train": str(folder), "val_fraction": 0.25, "test_fraction": 0.25}
    _, rows, _ = execute(data=data, strategies=["linear_probe"])
    assert computed(rows) > 2
    first, second, third = sorted(folder.iterdir())
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(first / "new.png")
    Image.fromarray(noise[::-1]).save(second / "new.png")
    sorted(third.iterdir())[0].unlink()
    _, rows, _ = execute(data=data, strategies=["linear_probe"])
    assert computed(rows) == 2


def test_other_weights_or_preprocessing_never_reuse_activations(execute: Execute, tmp_path: Path) -> None:
    model = build_backbone(BackboneConfig.model_validate(NETWORK), 3, seed=1).model
    weights = tmp_path / "weights.safetensors"

    def images_computed(**fields: object) -> int:
        metadata = {"library": "timm", "arch": "test_resnet"}
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, weights, metadata)
        _, rows, _ = execute(strategies=["linear_probe"], backbones=[{**NETWORK, "weights": str(weights), **fields}])
        return computed(rows)

    assert images_computed() > 0
    assert images_computed() == 0
    assert images_computed(input_size=40) > 0
    with torch.no_grad():
        next(buffer for buffer in model.buffers() if buffer.is_floating_point()).add_(0.1)  # a running mean
    assert images_computed() > 0
