"""The epoch loop of a trial, top to bottom: thaw, train, evaluate, keep, report, stop early. Imports torch only.

    progress = fit(backbone, lambda trainable_blocks: Feed(streams, backbone.model), trial, worker, folder, report)

Nothing random carries over from one epoch to the next (order, augmentation and dropout are seeded by the epoch), so
a trial that is resumed at an epoch continues as if it had never stopped.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tlray.config import Recipe, TrialConfig
from tlray.data.batch import Batch, Streams
from tlray.data.to_device import on_device
from tlray.errors import DivergenceError
from tlray.models.backbone import Backbone
from tlray.models.freeze import blocks_by_epoch, freeze, hash_tensors, parameter_groups, train_mode, trainable_state
from tlray.process.device import arithmetic, chosen_precision
from tlray.training.checkpoint import TrialFolder, state_of, unpack_model, unpack_optimizer
from tlray.training.commits import Commits, snapshot
from tlray.training.epoch import EpochMetrics, Report
from tlray.training.inputs import model_inputs, place
from tlray.training.metrics import ClassificationSums, Scores
from tlray.training.midway import MidwayFolder, at_step
from tlray.training.optim import make_optimizer, rate_factor, set_rate
from tlray.training.record import Progress
from tlray.training.step import eval_step, train_step
from tlray.training.worker import Worker


@dataclass(frozen=True)
class Feed:
    """What an epoch reads and what it trains: images and the whole model, or activations and the suffix behind them.

    A suffix shares the model's parameters, so that freezing, checkpoints and exports know the model alone.
    """

    streams: Streams
    model: nn.Module

    @property
    def reads_images(self) -> bool:
        return self.streams.preprocessing is not None


def fit(
    backbone: Backbone,
    feed_for: Callable[[int], Feed],  # by the number of trainable blocks
    trial: TrialConfig,
    worker: Worker,
    folder: TrialFolder,
    report: Report,
) -> Progress:
    """Train `trial` from where its folder says it is until its last epoch; reports and keeps every epoch."""
    recipe = with_precision(trial.recipe, worker.device)
    trial = trial.model_copy(update={"recipe": recipe})
    with (
        arithmetic(worker.device, recipe.precision, deterministic=recipe.deterministic),
        Commits(report, behind=worker.world_size == 1) as commits,
    ):
        return _fit(backbone, feed_for, trial, worker, folder, commits)


def with_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with "auto" decided; the plan has done it where there was one."""
    return recipe.model_copy(update={"precision": chosen_precision(recipe.precision, device)})


def _fit(
    backbone: Backbone,
    feed_for: Callable[[int], Feed],
    trial: TrialConfig,
    worker: Worker,
    folder: TrialFolder,
    commits: Commits,
) -> Progress:
    recipe = trial.recipe
    place(backbone, worker)
    thaw = thaw_plan(backbone, trial)
    freeze(backbone, thaw.most)
    optimizer = make_optimizer(parameter_groups(backbone), recipe)
    scaler = torch.amp.GradScaler(worker.device.type) if recipe.precision == "float16" else None
    frozen_hash = hash_tensors(backbone.model, thaw.frozen_keys)
    midway = MidwayFolder(folder, worker, frozen_hash)
    if worker.leads:
        folder.go_back()
    worker.sum_across(torch.zeros(()))  # all workers go on from the same place
    progress = folder.load_progress()
    if is_done(progress, recipe):
        return progress
    if progress.step > 0:
        midway.load(progress, backbone.model, optimizer)
    elif progress.epoch > 0:
        tensors = folder.load_tensors(progress, progress.epoch, frozen_hash)
        unpack_model(backbone.model, tensors)
        unpack_optimizer(optimizer, tensors)
    if scaler is not None and progress.scaler:
        scaler.load_state_dict(progress.scaler)

    feed, model, wrapped_for = None, backbone.model, -1
    while not is_done(progress, recipe):
        epoch = progress.epoch + 1
        started = time.perf_counter()
        torch.manual_seed(epoch_seed(trial.seed, epoch, worker.rank))
        trainable_blocks = thaw.blocks[epoch - 1]
        if trainable_blocks != wrapped_for:  # DDP only looks at what trains when it is made
            feed = feed_for(trainable_blocks)
            freeze(backbone, trainable_blocks)
            model, wrapped_for = worker.wrap(feed.model), trainable_blocks
        assert feed is not None, "an epoch has at least no trainable blocks, which is more than -1"
        streams = feed.streams
        train_mode(backbone, trainable_blocks, recipe.freeze_bn)
        begun = progress

        def between(step: int, loss_sum: torch.Tensor, begun: Progress = begun, started: float = started) -> None:
            commits.poll()
            if step == begun.step or step % recipe.checkpoint_steps:
                return
            commits.settle()
            here = at_step(begun, step, time.perf_counter() - started, scaler)
            midway.save(here, loss_sum, backbone.model, optimizer, thaw.changing_keys)

        loss_sum = midway.restore_worker(progress, backbone.model) if progress.step else None
        start = _Start(epoch, progress.step, loss_sum)
        train_loss = _train_epoch(model, streams, optimizer, scaler, recipe, worker, start, between)
        _average_buffers(backbone.model, worker)
        trained = time.perf_counter()
        backbone.model.eval()
        scores = evaluate(feed.model, streams, streams.val(), worker, recipe.precision)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            val_top5_accuracy=scores.top5_accuracy,
            val_macro_f1=scores.macro_f1,
            lr=optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            images_per_second=streams.num_train / (trained - started),
        )
        through_prefix = feed.reads_images and trainable_blocks < max(1, len(backbone.blocks))
        num_prefix = streams.num_train + streams.num_val if through_prefix else 0
        progress = replace(
            progress.after(metrics, streams.num_val),
            images_seen=progress.images_seen + streams.num_train,
            prefix_images_computed=progress.prefix_images_computed + num_prefix,
            seconds=progress.seconds + metrics.seconds,
            peak_memory_bytes=max(progress.peak_memory_bytes, peak_memory(worker.device)),
            scaler=scaler.state_dict() if scaler is not None else {},
        )
        copies = snapshot(state_of(backbone.model, optimizer, thaw.changing_keys) if worker.leads else {})

        def commit(progress: Progress = progress, copies: Callable[[], dict[str, torch.Tensor]] = copies) -> None:
            if worker.leads:
                folder.save(progress, copies(), frozen_hash)

        commits.submit(commit, metrics)
    return progress


@dataclass(frozen=True)
class Thaw:
    """How many blocks train in each epoch, and which tensors the whole training may and may not change."""

    blocks: tuple[int, ...]
    changing_keys: tuple[str, ...]
    frozen_keys: tuple[str, ...]

    @property
    def most(self) -> int:
        return max(self.blocks)


def thaw_plan(backbone: Backbone, trial: TrialConfig) -> Thaw:
    """The trial's freeze strategy, worked out for its backbone and number of epochs."""
    blocks = blocks_by_epoch(trial.strategy, backbone, trial.recipe.epochs)
    changing = set(trainable_state(backbone, max(blocks), trial.recipe.freeze_bn))
    keys = list(backbone.model.state_dict())
    return Thaw(
        blocks=blocks,
        changing_keys=tuple(key for key in keys if key in changing),
        frozen_keys=tuple(key for key in keys if key not in changing),
    )


def evaluate(
    model: nn.Module, streams: Streams, batches: Iterable[Batch], worker: Worker, precision: str = "float32"
) -> Scores:
    """Scores over the images of all workers, each counted once. The caller has set evaluation mode."""
    sums: ClassificationSums | None = None
    with closing(on_device(batches, worker.device)) as there:
        for batch in there:
            logits = eval_step(model, model_inputs(batch, streams, worker, precision), precision=precision)
            sums = sums or ClassificationSums(logits.shape[1], worker.device)
            sums.update(logits, batch.labels)
    assert sums is not None, "a split without images passed the manifest"
    sums.reduce(worker.sum_across)
    return sums.result()


@dataclass(frozen=True)
class _Start:
    """Where the training of an epoch begins: in its middle where a kill interrupted it."""

    epoch: int
    step: int  # batches that are trained already
    loss_sum: torch.Tensor | None  # over their images


def _train_epoch(
    model: nn.Module,
    streams: Streams,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    recipe: Recipe,
    worker: Worker,
    start: _Start,
    between: Callable[[int, torch.Tensor], None],
) -> float:
    """One pass over the training images -> mean training loss; TrialError when it is no longer a number.

    `between` is called before each batch with the number of batches trained and the sum of their losses.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing, reduction="sum")
    steps_per_epoch = math.ceil(streams.num_train / recipe.batch_size)
    loss_sum = torch.zeros((), device=worker.device) if start.loss_sum is None else start.loss_sum
    with closing(on_device(streams.train(start.epoch, start.step), worker.device)) as batches:
        for index, batch in enumerate(batches, start=start.step):
            between(index, loss_sum)
            step = (start.epoch - 1) * steps_per_epoch + index
            set_rate(optimizer, rate_factor(step, steps_per_epoch=steps_per_epoch, recipe=recipe))
            loss_sum += train_step(
                model,
                model_inputs(batch, streams, worker, recipe.precision),
                batch.labels.to(worker.device),
                criterion,
                optimizer,
                scale=worker.world_size / batch.num_global,
                precision=recipe.precision,
                scaler=scaler,
                gradient_clip=recipe.gradient_clip,
            )
    train_loss = float(worker.sum_across(loss_sum.double().cpu())) / streams.num_train
    if not math.isfinite(train_loss):
        raise DivergenceError(divergence(train_loss, start.epoch, recipe))
    return train_loss


def divergence(train_loss: float, epoch: int, recipe: Recipe) -> str:
    """Why a trial whose training loss is no longer a number has failed."""
    return f"diverged: the training loss of epoch {epoch} is {train_loss}; lower lr ({recipe.lr:g})"


def is_done(progress: Progress, recipe: Recipe) -> bool:
    """Whether the trial has had its epochs, or its patience has run out."""
    if progress.epoch >= recipe.epochs or not progress.history:
        return progress.epoch >= recipe.epochs
    return 0 < recipe.patience <= progress.epoch - progress.peak.epoch


def _average_buffers(model: nn.Module, worker: Worker) -> None:
    """Each worker's BatchNorm saw its own share of the images; all of them go on with the mean statistics."""
    if worker.world_size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(worker.sum_across(buffer.double().cpu()).to(buffer) / worker.world_size)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seeds dropout and whatever else one worker draws in one epoch."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the GPU held for this process, or the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
