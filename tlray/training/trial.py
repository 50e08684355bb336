"""The one place where a trial is put together; a single process, a Tune actor and Ray Train workers all call it.

    result = run_trial(trial, run_uri, local_worker(), manifest_images(manifest, config.data), report)

The result is a function of the trial, the images and the seed; the trial's folder in the run makes it resumable.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tlray import storage
from tlray.backbone import Backbone, build_backbone
from tlray.catalogue import Preprocessing
from tlray.config import DataConfig, Recipe, TrialConfig
from tlray.data.loader import Streams, make_streams
from tlray.data.manifest import Manifest
from tlray.freeze import freeze
from tlray.results import TrialResult, read_trial_result, write_trial_result
from tlray.training.checkpoint import Progress, TrialFolder, hash_tensors, unpack_model
from tlray.training.loop import fit, is_done, model_input, place, thaw_plan
from tlray.training.metrics import ClassificationSums, Scores
from tlray.training.step import eval_step
from tlray.training.worker import Report, Worker


@dataclass(frozen=True)
class TrialImages:
    """The images as a trial sees them: how many classes, and batches once the preprocessing is known."""

    num_classes: int
    open_streams: Callable[[Preprocessing, Recipe, int, Worker], Streams]  # the int is the seed
    test_content_ids: tuple[str, ...]


def manifest_images(manifest: Manifest, data: DataConfig) -> TrialImages:
    """The images of a manifest, read by threads of the calling process."""

    def open_streams(preprocessing: Preprocessing, recipe: Recipe, seed: int, worker: Worker) -> Streams:
        return make_streams(
            manifest,
            preprocessing,
            batch_size=recipe.batch_size,
            augmentation=recipe.augmentation,
            seed=seed,
            rank=worker.rank,
            world_size=worker.world_size,
            num_threads=data.num_threads,
            memory_cache_mb=data.memory_cache_mb,
        )

    test = tuple(image.content_id for image in manifest.split("test"))
    return TrialImages(num_classes=len(manifest.classes), open_streams=open_streams, test_content_ids=test)


def trial_folder(run_uri: str, trial_id: str) -> TrialFolder:
    return TrialFolder(storage.join(run_uri, "trials", trial_id))


def run_trial(
    trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages, report: Report
) -> TrialResult | None:
    """Train, or continue training, one trial and score its best epoch on the test split.

    Every epoch is reported as it ends; a trial with nothing left to train reports its last epoch once more, because
    a scheduler that hears nothing takes the trial for broken. Returns None on workers other than the first.
    """
    folder = trial_folder(run_uri, trial.trial_id)
    backbone = build_backbone(trial.backbone, images.num_classes, seed=trial.seed)
    streams = images.open_streams(backbone.preprocessing, trial.recipe, trial.seed, worker)
    already = folder.load_progress().epoch
    progress = fit(backbone, streams, trial, worker, folder, report)
    if progress.epoch == already:
        report(progress.history[-1])
    if not worker.leads:
        return None
    return _conclude(trial, run_uri, backbone, worker, images)


def conclude_stopped_trial(trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages) -> TrialResult:
    """Score the best epoch of a trial that the scheduler stopped, and write its final row."""
    backbone = build_backbone(trial.backbone, images.num_classes, seed=trial.seed)
    place(backbone, worker)
    return _conclude(trial, run_uri, backbone, worker, images)


def release_memory() -> None:
    """Free the models of trials that have ended, for the next trial in this process.

    A traced model is part of reference cycles, which Python would otherwise free whenever it next counts its objects;
    until then every trial adds its weights, optimizer and gradients, on the GPU too.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_trained(trial: TrialConfig, run_uri: str, num_classes: int) -> Backbone:
    """The trial's model with the weights of its best epoch, on the CPU in evaluation mode."""
    backbone = build_backbone(trial.backbone, num_classes, seed=trial.seed)
    folder = trial_folder(run_uri, trial.trial_id)
    _load_best(backbone, trial, folder, folder.load_progress())
    backbone.model.eval()
    return backbone


def failed_result(trial: TrialConfig, run_uri: str, error: str) -> TrialResult:
    """The row of a trial that could not be carried out: a reason and no score."""
    progress = trial_folder(run_uri, trial.trial_id).load_progress()
    return TrialResult(**_described(trial, progress), status="failed", error=error)


def _conclude(trial: TrialConfig, run_uri: str, backbone: Backbone, worker: Worker, images: TrialImages) -> TrialResult:
    """Score the best epoch on the test split; predictions first, then result.json, whose presence means done."""
    existing = read_trial_result(run_uri, trial.trial_id)
    if existing is not None and existing.status != "failed":
        return existing
    folder = trial_folder(run_uri, trial.trial_id)
    progress = folder.load_progress()
    _load_best(backbone, trial, folder, progress)
    alone = Worker(device=worker.device)
    streams = images.open_streams(backbone.preprocessing, trial.recipe, trial.seed, alone)
    scores = _score_test(backbone, streams, trial, alone, images, folder.uri)
    result = TrialResult(
        **_described(trial, progress, backbone),
        status="completed" if is_done(progress, trial.recipe) else "stopped",
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        val_accuracy=progress.best.val_accuracy,
        val_loss=progress.best.val_loss,
        val_top5_accuracy=progress.best.val_top5_accuracy,
        val_macro_f1=progress.best.val_macro_f1,
        test_accuracy=scores.accuracy,
        test_top5_accuracy=scores.top5_accuracy,
        test_macro_f1=scores.macro_f1,
        checkpoint=folder.checkpoint_uri(progress.best_epoch),
    )
    write_trial_result(run_uri, result)
    return result


def _described(trial: TrialConfig, progress: Progress, backbone: Backbone | None = None) -> dict[str, Any]:
    """The fields of a row that do not depend on how the trial ended."""
    fields: dict[str, Any] = {
        "trial_id": trial.trial_id,
        "backbone": trial.backbone.id,
        "weights": trial.backbone.weights,
        "strategy": trial.strategy.label,
        "params": trial.recipe.model_dump(),
        "seed": trial.seed,
        "is_baseline": trial.is_baseline,
        "images_seen": progress.images_seen,
        "prefix_images_computed": progress.prefix_images_computed,
        "seconds": progress.seconds,
        "peak_memory_bytes": progress.peak_memory_bytes,
    }
    if backbone is not None:
        freeze(backbone, thaw_plan(backbone, trial).most)
        parameters = list(backbone.model.parameters())
        fields["num_params"] = sum(p.numel() for p in parameters)
        fields["num_trainable_params"] = sum(p.numel() for p in parameters if p.requires_grad)
    return fields


def _load_best(backbone: Backbone, trial: TrialConfig, folder: TrialFolder, progress: Progress) -> None:
    frozen_hash = hash_tensors(backbone.model, thaw_plan(backbone, trial).frozen_keys)
    backbone.model.train()  # some timm models cache what they derive from their weights until this is called
    unpack_model(backbone.model, folder.load_tensors(progress.best_epoch, frozen_hash))


def _score_test(
    backbone: Backbone, streams: Streams, trial: TrialConfig, worker: Worker, images: TrialImages, folder_uri: str
) -> Scores:
    """Scores on the test split; writes every image's prediction, which the confidence intervals are made from."""
    backbone.model.eval()
    sums = ClassificationSums(images.num_classes)
    rows, labels, predicted, confidence = [], [], [], []
    for batch in streams.test():
        inputs = model_input(batch, backbone.preprocessing, worker)
        logits = eval_step(backbone.model, inputs, precision=trial.recipe.precision).cpu()
        sums.update(logits, batch.labels)
        best = torch.softmax(logits, dim=1).max(dim=1)
        rows.append(batch.rows.numpy())
        labels.append(batch.labels.numpy())
        predicted.append(best.indices.numpy())
        confidence.append(best.values.numpy())
    row = np.concatenate(rows)
    table = pa.table(
        {
            "row": pa.array(row, pa.int64()),
            "content_id": pa.array([images.test_content_ids[i] for i in row]),
            "label": pa.array(np.concatenate(labels), pa.int32()),
            "predicted": pa.array(np.concatenate(predicted), pa.int32()),
            "confidence": pa.array(np.concatenate(confidence), pa.float32()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(folder_uri, "test_predictions.parquet"), sink.getvalue().to_pybytes())
    return sums.result()
