"""A run folder with made-up results, for tests of the report: nothing is trained."""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.config import RunConfig, TrialConfig
from tlray.config.file import dump_config
from tlray.config.search_space import list_trials
from tlray.data.manifest import BadImage, Image, Manifest
from tlray.runs.folder import CONFIG, PLAN, write_format
from tlray.runs.manifest import save_manifest
from tlray.runs.results import TrialResult
from tlray.runs.trials import PREDICTION_FILES, write_trial_result
from tlray.storage.sealed import write_checked
from tlray.training.epoch import EpochMetrics
from tlray.training.record import Progress, save_history

NUM_EPOCHS = 4
STRATEGIES = (
    {"strategy": "linear_probe", "solver": "gradient"},
    {"strategy": "partial", "trainable_blocks": 2},
    "full",
)


def make_run(
    run_uri: str,
    *,
    classes: Sequence[str] = ("daisy", "rose", "tulip"),
    backbones: Sequence[str] = ("timm/test_resnet", "timm/test_vit"),
    num_ended: int | None = None,
    failed: Sequence[int] = (),
    stopped: Sequence[int] = (),
    bad: Sequence[tuple[str, str]] = (),
    num_test: int = 60,
) -> list[TrialConfig]:
    """Write a run of which the first `num_ended` trials have ended; `failed` and `stopped` are their places."""
    config = RunConfig.model_validate(
        {
            "name": "flowers",
            "data": {"train": "s3://bucket/flowers"},
            "backbones": list(backbones),
            "strategies": list(STRATEGIES),
            "search_space": {"lr": {"grid": [0.001, 0.01]}},
            "training": {"epochs": NUM_EPOCHS},
        }
    )
    trials = list_trials(config)
    plan = json.dumps({"trials": [{"trial_id": trial.trial_id} for trial in trials]})
    checksums = {
        name: write_checked(storage.join(run_uri, name), text.encode())
        for name, text in ((CONFIG, dump_config(config)), (PLAN, plan))
    }
    write_format(run_uri, checksums | save_manifest(_manifest(classes, num_test, bad), run_uri))
    random = np.random.default_rng(0)
    for place, trial in enumerate(trials[:num_ended]):
        if place in failed:
            result = _row(trial, status="failed", error="out of GPU memory: lower batch_size", seconds=2.0)
            files = {}
        else:
            status = "stopped" if place in stopped else "completed"
            result, files = _trained(run_uri, trial, classes, num_test, status, random)
        write_trial_result(run_uri, result, files)
    return trials


def _manifest(classes: Sequence[str], num_test: int, bad: Sequence[tuple[str, str]]) -> Manifest:
    images = [
        Image(f"s3://bucket/{split}/{i}.jpg", i % len(classes), split, _hash(f"{split}{i}"), 1000, 64, 64)
        for split, count in (("train", 2 * num_test), ("val", num_test), ("test", num_test))
        for i in range(count)
    ]
    return Manifest(tuple(classes), tuple(images), tuple(BadImage(*image) for image in bad))


def _trained(
    run_uri: str, trial: TrialConfig, classes: Sequence[str], num_test: int, status: str, random: np.random.Generator
) -> tuple[TrialResult, dict[str, str]]:
    accuracy = 0.5 if trial.is_baseline else random.uniform(0.7, 0.95)
    history = tuple(
        EpochMetrics(
            epoch=epoch,
            train_loss=1 / epoch,
            val_loss=1 / epoch,
            val_accuracy=accuracy * epoch / NUM_EPOCHS,
            val_top5_accuracy=1.0,
            val_macro_f1=accuracy * epoch / NUM_EPOCHS,
            lr=0.01,
            seconds=3.0,
            images_per_second=40.0,
        )
        for epoch in range(1, NUM_EPOCHS + 1)
    )
    folder = storage.join(run_uri, "trials", trial.trial_id)
    save_history(folder, Progress(history=history))
    label = np.arange(num_test) % len(classes)
    correct = random.random(num_test) < accuracy
    predicted = np.where(correct, label, (label + 1) % len(classes))
    sink = io.BytesIO()
    pq.write_table(pa.table({"row": np.arange(num_test), "label": label, "predicted": predicted}), sink)
    checksum = write_checked(storage.join(folder, PREDICTION_FILES["test"]), sink.getvalue())
    row = _row(
        trial,
        status=status,
        epochs=NUM_EPOCHS,
        best_epoch=NUM_EPOCHS,
        val_accuracy=accuracy,
        val_loss=0.5,
        test_accuracy=float(correct.mean()),
        num_params=400_000,
        num_trainable_params=1_000,
        seconds=12.0,
    )
    return row, {PREDICTION_FILES["test"]: checksum}


def _row(trial: TrialConfig, **fields: Any) -> TrialResult:
    return TrialResult(
        trial_id=trial.trial_id,
        backbone=trial.backbone.id,
        weights=trial.backbone.weights,
        strategy=trial.strategy.label,
        params=trial.recipe.model_dump(),
        seed=trial.seed,
        is_baseline=trial.is_baseline,
        **fields,
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
