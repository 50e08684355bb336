"""Linear probes as a group and one by one, on features of a real prefix, and what must be equal of the two.

ours, curves = run_group(make_trials(), folder, activation_images(manifest))
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.batch import Batch, HeldEpoch, Streams
from tlray.data.loader import load_draws
from tlray.data.manifest import Manifest
from tlray.data.order import evaluation_steps, train_steps
from tlray.data.transforms import normalise
from tlray.models.backbone import Backbone
from tlray.models.split import find_cut, frozen_prefix
from tlray.runs.results import TrialResult
from tlray.training.epoch import EpochMetrics
from tlray.training.probe_group import run_probe_group
from tlray.training.trial import TrialImages, manifest_images, run_trial
from tlray.training.worker import Worker, local_worker

NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)
MIX: tuple[dict[str, object], ...] = (
    {"lr": 0.003},
    {"lr": 0.3, "patience": 2, "schedule": "constant"},
    {"lr": 0.01, "weight_decay": 0.3, "label_smoothing": 0.1, "warmup_epochs": 1.5},
    {"lr": 0.02, "gradient_clip": 0.05, "head_lr_mult": 3.0, "epochs": 3, "momentum": 0.5},
    {"lr": 1e-6, "patience": 1},
)
TOLERANCE = 1e-6  # of float32 sums in another order
DIFFERS = {"seconds": 0, "peak_memory_bytes": 0}
Curves = dict[str, list[EpochMetrics]]


def make_trials(network: BackboneConfig = NETWORK, mix: Sequence[dict[str, object]] = MIX, **shared: object) -> list:
    usual = {"epochs": 5, "batch_size": 8, "augmentation": "none", **shared}
    return [
        TrialConfig(
            trial_id=f"t{index}",
            backbone=network,
            strategy=StrategyConfig(strategy="linear_probe"),
            recipe=Recipe.model_validate(usual).model_copy(update=fields),  # some beyond what a configuration may say
            seed=0,
        )
        for index, fields in enumerate(mix)
    ]


def live_images(manifest: Manifest) -> TrialImages:
    return manifest_images(manifest, DataConfig(train="unused"))


def activation_images(manifest: Manifest, dtype: torch.dtype = torch.float16) -> TrialImages:
    """What the store would give: the features of the real prefix, in the order of the images' own streams."""

    computed: dict[tuple[str, str], tuple[torch.Tensor, ...]] = {}

    def open_activations(backbone: Backbone, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams:
        prefix = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])
        for split in ("train", "val", "test"):
            if (backbone.id, split) not in computed:
                draws = load_draws(manifest.split(split), backbone.preprocessing, "none", 0, num_threads=1)
                (values,) = prefix(normalise(torch.stack(list(draws)), backbone.preprocessing))
                computed[backbone.id, split] = tuple(value.to(dtype) for value in values)

        def batches(split: str, steps: Sequence[np.ndarray]) -> Iterator[Batch]:
            labels = torch.tensor([image.label for image in manifest.split(split)])
            for step in steps:
                rows = torch.as_tensor(step, dtype=torch.int64)
                inputs = tuple(value[rows] for value in computed[backbone.id, split])
                yield Batch(inputs, labels[rows], rows, len(rows))

        def train(epoch: int, first: int = 0) -> Iterator[Batch]:
            steps = train_steps(sizes["train"], trial.recipe.batch_size, trial.seed, epoch)
            return batches("train", steps[first:])

        def evaluation(split: str) -> Iterator[Batch]:
            return batches(split, evaluation_steps(sizes[split], trial.recipe.batch_size, 0, 1)[0])

        sizes = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
        counts = {f"num_{split}": size for split, size in sizes.items()}
        return Streams(None, train, partial(evaluation, "val"), partial(evaluation, "test"), **counts)

    charged = {"t0": 36}
    return dataclasses.replace(live_images(manifest), open_activations=open_activations, charged_images=charged)


def holding(images: TrialImages) -> TrialImages:
    """The same, with the training rows of every epoch held on the device, as a GPU that has room for them does."""

    def open_activations(backbone: Backbone, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams:
        streams = images.open_activations(backbone, num_frozen, trial, worker)
        assert streams is not None
        batches = list(streams.train(0))
        order = torch.cat([batch.rows for batch in batches]).argsort()
        labels = torch.cat([batch.labels for batch in batches])[order]
        values = [torch.cat(parts)[order] for parts in zip(*(batch.inputs for batch in batches), strict=True)]
        kept = tuple(value.permute(0, 2, 3, 1).contiguous() if value.ndim == 4 else value for value in values)

        def held(epoch: int) -> HeldEpoch:
            steps = train_steps(streams.num_train, trial.recipe.batch_size, trial.seed, epoch)
            rows = torch.from_numpy(np.concatenate(steps))
            return HeldEpoch(kept, labels, rows, tuple(len(step) for step in steps))

        return dataclasses.replace(streams, held=held)

    return dataclasses.replace(images, open_activations=open_activations)


def run_group(trials: Sequence[TrialConfig], folder: Path, images: TrialImages) -> tuple[list[TrialResult], Curves]:
    curves: Curves = {}
    rows = run_probe_group(
        trials, str(folder), local_worker(), images, lambda trial_id, m: curves.setdefault(trial_id, []).append(m)
    )
    return rows, curves


def run_one_by_one(
    trials: Sequence[TrialConfig], folder: Path, images: TrialImages
) -> tuple[list[TrialResult], Curves]:
    curves: Curves = {trial.trial_id: [] for trial in trials}
    rows = []
    for trial in trials:
        row = run_trial(trial, str(folder), local_worker(), images, curves[trial.trial_id].append)
        assert row is not None
        rows.append(row)
    return rows, curves


def assert_same_curve(ours: Sequence[EpochMetrics], theirs: Sequence[EpochMetrics], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=tolerance, abs=tolerance)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=tolerance, abs=tolerance)
        assert mine.val_macro_f1 == pytest.approx(other.val_macro_f1, abs=1e-12)
        exact = ("epoch", "lr", "val_accuracy", "val_top5_accuracy")
        assert [getattr(mine, name) for name in exact] == [getattr(other, name) for name in exact]


def assert_same_row(ours: TrialResult, theirs: TrialResult, ignore: Sequence[str] = ()) -> None:
    mine, other = ours.model_dump(), theirs.model_dump()
    for fields in (mine, other):
        fields["checkpoint"] = fields["checkpoint"].rpartition("/")[2]
    for name in (*DIFFERS, *ignore):
        del mine[name], other[name]
    assert mine.pop("val_calibrated_loss") == pytest.approx(other.pop("val_calibrated_loss"), rel=1e-4)
    assert mine.pop("val_loss") == pytest.approx(other.pop("val_loss"), rel=2e-5 if ignore else TOLERANCE)
    assert mine == pytest.approx(other) if ignore else mine == other


def assert_same_folder(ours: Path, theirs: Path, tolerance: float = TOLERANCE) -> None:
    """The best checkpoint, the curve and the predictions; a trial trained alone has its last checkpoint too."""
    checkpoints = [path.name for path in ours.glob("epoch-*.safetensors")]
    assert checkpoints == [f"epoch-{json.loads((theirs / 'progress.json').read_text())['best_epoch']:04d}.safetensors"]
    mine, other = load_file(ours / checkpoints[0]), load_file(theirs / checkpoints[0])
    assert mine.keys() == {key for key in other if key.startswith("model/")}
    head, expected = (torch.cat([side[key].flatten() for key in mine]) for side in (mine, other))
    assert float((head - expected).norm() / expected.norm()) <= tolerance
    assert len((ours / "history.jsonl").read_text().splitlines()) == len(
        (theirs / "history.jsonl").read_text().splitlines()
    )
    for name in ("test_predictions.parquet", "val_predictions.parquet"):
        predictions = [pq.read_table(folder / name).to_pydict() for folder in (ours, theirs)]
        confidence, logs = ([table.pop(key) for table in predictions] for key in ("confidence", "log_probabilities"))
        assert predictions[0] == predictions[1]
        assert confidence[0] == pytest.approx(confidence[1], rel=10 * tolerance)
        assert np.allclose(logs[0], logs[1], rtol=0, atol=100 * tolerance)
