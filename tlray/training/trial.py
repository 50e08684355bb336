"""The one place where a trial is put together; a single process, a Tune actor and Ray Train workers all call it.

    result = run_trial(trial, run_uri, local_worker(), manifest_images(manifest, config.data), report)

The result is a function of the trial, the images and the seed; the trial's folder in the run makes it resumable.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.config import DataConfig, Recipe, TrialConfig
from tlray.data.batch import Streams
from tlray.data.kept import KeptPixels
from tlray.data.loader import GB, make_streams
from tlray.data.manifest import Manifest
from tlray.data.read import image_reader
from tlray.data.windows import windows_of
from tlray.errors import DamagedError, DivergenceError, TrialError
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze, hash_tensors
from tlray.models.split import trainable_suffix
from tlray.process.device import arithmetic, chosen_precision
from tlray.runs.predictions import PREDICTED_SPLITS, PredictedSplit
from tlray.runs.results import TrialResult
from tlray.runs.trials import (
    UNREADABLE,
    checkpoint_of,
    read_trial_result,
    trial_uri,
    unmark_stopped,
    write_trial_result,
)
from tlray.training.checkpoint import TrialFolder, checkpoint_name, read_tensors, unpack_model
from tlray.training.epoch import EpochMetrics, Report
from tlray.training.inputs import place
from tlray.training.loop import Feed, fit, is_done, thaw_plan, with_precision
from tlray.training.predictions import Judgement, answers_of, write_predictions
from tlray.training.record import Progress, recorded_fields
from tlray.training.repeat import as_it_trains, begin_again
from tlray.training.solved_probe import STRENGTH, as_it_can_be_found, solve_trial
from tlray.training.worker import Worker

SEEN = "trained on the validation images too, so its validation scores are of images that it has seen"


def _recompute(backbone: Backbone, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams | None:
    return None


@dataclass(frozen=True)
class TrialImages:
    """The images as a trial sees them: how many classes, and batches once the preprocessing is known.

    `open_activations` streams what the first `num_frozen` blocks have computed of them, or says None where the frozen
    blocks are to be computed again and again.
    """

    num_classes: int
    open_streams: Callable[[Preprocessing, Recipe, int, Worker], Streams]  # the int is the seed
    num_train: int
    content_ids: Mapping[PredictedSplit, tuple[str, ...]]  # of the images of a split, in its order
    open_activations: Callable[[Backbone, int, TrialConfig, Worker], Streams | None] = _recompute
    charged_images: Mapping[str, int] = field(default_factory=dict)  # by the activation pass, for a trial's sake
    chooses_epoch: bool = True  # False: val is part of train, and the last epoch is the result


def manifest_images(manifest: Manifest, data: DataConfig) -> TrialImages:
    """The images of a manifest, read by threads of the calling process."""
    read = image_reader(data)
    folder = data.cache if data.max_side is None else f"{data.cache}/short-side-{data.max_side}"
    kept = KeptPixels(folder, int(data.pixels_max_gb * GB))
    windows = windows_of(manifest.split("train"), data)

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
            read=read,
            kept_pixels=kept,
            windows=windows,
            device=worker.device,
        )

    content_ids = {split: tuple(image.content_id for image in manifest.split(split)) for split in PREDICTED_SPLITS}
    return TrialImages(
        num_classes=len(manifest.classes),
        open_streams=open_streams,
        num_train=len(manifest.split("train")),
        content_ids=content_ids,
    )


def trial_folder(run_uri: str, trial_id: str) -> TrialFolder:
    return TrialFolder(trial_uri(run_uri, trial_id))


def run_trial(
    trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages, report: Report
) -> TrialResult | None:
    """Train, or continue training, one trial and score its best epoch on the test split.

    Every epoch is reported as it ends; a trial with nothing left to train reports its last epoch once more, because
    a scheduler that hears nothing takes the trial for broken. Returns None on workers other than the first.
    """
    folder = trial_folder(run_uri, trial.trial_id)
    asked, _ = as_it_trains(trial, folder.uri)
    backbone = build_backbone(trial.backbone, images.num_classes, seed=trial.seed)
    trial, _ = as_it_can_be_found(asked, backbone, images.num_train)
    told: list[EpochMetrics] = []

    def tell(metrics: EpochMetrics) -> None:
        told.append(metrics)
        report(metrics)

    try:
        if trial.is_solved:
            progress = solve_trial(backbone, partial(_frozen_feed, backbone, images), trial, worker, folder)
        else:
            progress = fit(backbone, partial(_feed, backbone, trial, worker, images), trial, worker, folder, tell)
    except DivergenceError as error:
        precision = chosen_precision(trial.recipe.precision, worker.device)
        if precision == "float32":
            raise
        if worker.leads:
            begin_again(folder.uri, precision, str(error))
        worker.sum_across(torch.zeros(()))  # the others look for the mark that this leaves
        return run_trial(asked, run_uri, worker, images, report)
    if not told:
        report(progress.history[-1])
    if not worker.leads:
        return None
    return _conclude(asked, run_uri, backbone, worker, images)


def conclude_stopped_trial(trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages) -> TrialResult:
    """Score the best epoch of a trial that the scheduler stopped, and write its final row.

    TrialError where its checkpoint is damaged: the trial is then one that a resume trains again.
    """
    trial, _ = as_it_trains(trial, trial_uri(run_uri, trial.trial_id))
    backbone = build_backbone(trial.backbone, images.num_classes, seed=trial.seed)
    place(backbone, worker)
    try:
        return _conclude(trial, run_uri, backbone, worker, images)
    except DamagedError as error:
        trial_folder(run_uri, trial.trial_id).go_back()
        unmark_stopped(run_uri, trial.trial_id)
        raise TrialError(str(error)) from None


def release_memory() -> None:
    """Free the models of trials that have ended, for the next trial in this process.

    A traced model is part of reference cycles, which Python would otherwise free whenever it next counts its objects;
    until then every trial adds its weights, optimizer and gradients, on the GPU too.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def load_trained(trial: TrialConfig, run_uri: str, num_classes: int) -> Backbone:
    """The trial's model with the weights of its best epoch, on the CPU in evaluation mode.

    DamagedError where these are not whole; the next resume looks at them and trains the trial again.
    """
    backbone = build_backbone(trial.backbone, num_classes, seed=trial.seed)
    uri, checksum = checkpoint_of(run_uri, trial.trial_id)
    try:
        _load(backbone, trial, uri, checksum)
    except DamagedError:
        storage.write_text(trial_uri(run_uri, trial.trial_id, UNREADABLE), "")
        raise
    backbone.model.eval()
    return backbone


def _feed(backbone: Backbone, trial: TrialConfig, worker: Worker, images: TrialImages, trainable_blocks: int) -> Feed:
    """Activations and the suffix while a prefix is frozen and the plan has it materialised, else images."""
    num_frozen = len(backbone.blocks) - trainable_blocks
    if num_frozen > 0:
        activations = images.open_activations(backbone, num_frozen, trial, worker)
        if activations is not None:
            return Feed(activations, trainable_suffix(backbone, num_frozen))
    return Feed(images.open_streams(backbone.preprocessing, trial.recipe, trial.seed, worker), backbone.model)


def _frozen_feed(backbone: Backbone, images: TrialImages, trial: TrialConfig, worker: Worker) -> Feed:
    return _feed(backbone, trial, worker, images, 0)


def _conclude(trial: TrialConfig, run_uri: str, backbone: Backbone, worker: Worker, images: TrialImages) -> TrialResult:
    """Score the best epoch on the test split; predictions first, then result.json, whose presence means done."""
    existing = read_trial_result(run_uri, trial.trial_id)
    if existing is not None and existing.status != "failed":
        return existing
    folder = trial_folder(run_uri, trial.trial_id)
    trial, note = as_it_trains(trial, folder.uri)
    trial, unsolved = as_it_can_be_found(trial, backbone, images.num_train)
    recipe = with_precision(trial.recipe, worker.device)
    trial = trial.model_copy(update={"recipe": recipe})
    progress = folder.load_progress()
    if not images.chooses_epoch:
        progress, note = replace(progress, best_epoch=progress.epoch), note or SEEN
    best = checkpoint_name(progress.best_epoch)
    tensors = _load(backbone, trial, folder.checkpoint_uri(progress.best_epoch), progress.files.get(best, ""))
    alone = Worker(device=worker.device)
    feed = _feed(backbone, trial, alone, images, thaw_plan(backbone, trial).most)
    with arithmetic(worker.device, recipe.precision, deterministic=recipe.deterministic):
        answers = {split: answers_of(backbone, feed, split, recipe.precision, alone) for split in PREDICTED_SPLITS}
    scores, predictions = write_predictions(folder.uri, answers, images.content_ids)
    fields = described(trial, progress, images.charged_images.get(trial.trial_id, 0), backbone)
    fields["note"] = "; ".join(filter(None, (note, unsolved))) or None
    if STRENGTH in tensors:
        fields["params"] |= {"C": float(tensors[STRENGTH])}
    result = scored_result(fields, trial, progress, scores, folder.checkpoint_uri(progress.best_epoch))
    write_trial_result(run_uri, result, {best: progress.files[best], **predictions})
    return result


def scored_result(
    fields: dict[str, Any], trial: TrialConfig, progress: Progress, scores: Judgement, checkpoint: str
) -> TrialResult:
    """The row of a trial that has been trained: `described` fields, scores of its best epoch, and where that lies."""
    return TrialResult(
        **fields,
        status="completed" if trial.is_solved or is_done(progress, trial.recipe) else "stopped",
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        val_accuracy=progress.best.val_accuracy,
        val_loss=progress.best.val_loss,
        val_top5_accuracy=progress.best.val_top5_accuracy,
        val_macro_f1=progress.best.val_macro_f1,
        val_calibrated_loss=scores.val_calibrated_loss,
        num_val_images=scores.num_val_images,
        test_accuracy=scores.accuracy,
        test_top5_accuracy=scores.top5_accuracy,
        test_macro_f1=scores.macro_f1,
        checkpoint=checkpoint,
    )


def described(
    trial: TrialConfig, progress: Progress, charged_images: int, backbone: Backbone | None = None
) -> dict[str, Any]:
    """The fields of a row that do not depend on how the trial ended."""
    fields = recorded_fields(trial, progress, charged_images)
    if backbone is not None:
        freeze(backbone, thaw_plan(backbone, trial).most)
        parameters = list(backbone.model.parameters())
        fields["num_params"] = sum(p.numel() for p in parameters)
        fields["num_trainable_params"] = sum(p.numel() for p in parameters if p.requires_grad)
    return fields


def _load(backbone: Backbone, trial: TrialConfig, checkpoint: str, checksum: str) -> dict[str, torch.Tensor]:
    frozen_hash = hash_tensors(backbone.model, thaw_plan(backbone, trial).frozen_keys)
    backbone.model.train()  # some timm models cache what they derive from their weights until this is called
    tensors = read_tensors(checkpoint, checksum, frozen_hash)
    unpack_model(backbone.model, tensors)
    return tensors
