"""The epoch loop of a group of linear probes: what `loop.fit` does for one trial, for T stacked heads at once.

    rows, best = fit_group(backbone, streams, trials, worker, folder, frozen_hash, report)

Every row has its own schedule, early stopping and best epoch. A row whose trial has ended leaves the stack, which saves
its share of the work; all rows that remain are at the same epoch. A row that diverges fails alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from tlray.config import TrialConfig
from tlray.data.batch import Streams
from tlray.data.to_device import on_device
from tlray.models.backbone import Backbone
from tlray.models.freeze import train_mode
from tlray.process.device import arithmetic
from tlray.training.epoch import EpochMetrics
from tlray.training.inputs import model_inputs
from tlray.training.loop import divergence, epoch_seed, peak_memory, with_precision
from tlray.training.metrics import Scores
from tlray.training.probe_checkpoint import GroupFolder, Row
from tlray.training.probe_metrics import StackedSums
from tlray.training.probe_optim import StackedOptimizer
from tlray.training.probe_steps import HeldSteps, streamed_epoch
from tlray.training.probes import StackedHeads
from tlray.training.worker import Worker

COMMIT_SECONDS = 5.0  # at least, between two commits; what a kill can cost beside the epoch it falls into

GroupReport = Callable[[str, EpochMetrics], None]  # by trial id


@dataclass
class Group:
    """The rows of a group, and the stacks of those that still train, in the same order."""

    rows: list[Row]
    heads: StackedHeads
    optimizer: StackedOptimizer
    best: dict[str, torch.Tensor]  # (number of rows, ...): each row's parameters at its best epoch
    held_steps: HeldSteps | None = None  # of these stacks, where the device holds what they read

    def training(self) -> list[int]:
        """Positions in `rows` of what is in the stacks."""
        return [index for index, row in enumerate(self.rows) if row.is_training]

    def keep(self, places: Sequence[int]) -> None:
        """Drop everything else from the stacks."""
        if len(places) < self.heads.num_rows:
            chosen = torch.tensor(places, dtype=torch.int64, device=next(iter(self.best.values())).device)
            self.heads.keep(chosen)
            self.optimizer.keep(chosen)
            self.held_steps = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds."""
        tensors = {f"parameters/{key}": tensor for key, tensor in self.heads.parameters.items()}
        tensors |= {f"best/{key}": tensor for key, tensor in self.best.items()}
        for name, moments in self.optimizer.moments.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in moments.items()}
        return tensors


def fit_group(
    backbone: Backbone,
    streams: Streams,
    trials: Sequence[TrialConfig],
    worker: Worker,
    folder: GroupFolder,
    frozen_hash: str,
    report: GroupReport,
) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """Train all `trials` from where the group's folder says they are -> their rows, and the best parameters of each.

    The folder holds all trials or none of them. An epoch's seconds are shared out evenly among the rows that train in
    it, so that the seconds of all rows add up to the group's.
    """
    trials = [trial.model_copy(update={"recipe": with_precision(trial.recipe, worker.device)}) for trial in trials]
    recipe = trials[0].recipe
    with arithmetic(worker.device, recipe.precision, deterministic=recipe.deterministic):
        return _fit_group(backbone, streams, trials, worker, folder, frozen_hash, report)


def _fit_group(
    backbone: Backbone,
    streams: Streams,
    trials: Sequence[TrialConfig],
    worker: Worker,
    folder: GroupFolder,
    frozen_hash: str,
    report: GroupReport,
) -> tuple[list[Row], dict[str, torch.Tensor]]:
    group = _start(backbone, trials, folder, frozen_hash, worker)
    committed = time.perf_counter()
    while group.training():
        metrics = _run_epoch(group, backbone, streams, worker)
        if time.perf_counter() - committed > COMMIT_SECONDS or not group.training():
            folder.save(group.rows, group.tensors(), frozen_hash)
            committed = time.perf_counter()
        for index, row_metrics in metrics.items():
            report(group.rows[index].trial.trial_id, row_metrics)
    return group.rows, group.best


def _run_epoch(group: Group, backbone: Backbone, streams: Streams, worker: Worker) -> dict[int, EpochMetrics]:
    """Train and evaluate the next epoch of all rows in the stacks -> its metrics, by position in the group's rows."""
    training = group.training()
    first = group.rows[training[0]]
    epoch = first.progress.epoch + 1
    assert all(group.rows[index].progress.epoch + 1 == epoch for index in training), "rows train in lockstep"
    started = time.perf_counter()
    torch.manual_seed(epoch_seed(first.trial.seed, epoch, worker.rank))
    train_mode(backbone, 0, first.trial.recipe.freeze_bn)
    train_losses, rates = _train_epoch(group, streams, worker, epoch)
    trained = time.perf_counter()
    for index, loss in zip(training, train_losses, strict=True):
        if not math.isfinite(loss):
            row = group.rows[index]
            group.rows[index] = replace(row, error=divergence(loss, epoch, row.trial.recipe))
    places = [place for place, loss in enumerate(train_losses) if math.isfinite(loss)]
    group.keep(places)
    backbone.model.eval()
    scores = _evaluate(group.heads, streams, worker, first.trial.recipe.precision) if places else []
    seconds = time.perf_counter() - started
    metrics = {
        training[place]: EpochMetrics(
            epoch=epoch,
            train_loss=train_losses[place],
            val_loss=score.loss,
            val_accuracy=score.accuracy,
            val_top5_accuracy=score.top5_accuracy,
            val_macro_f1=score.macro_f1,
            lr=rates[place],
            seconds=seconds / len(training),
            images_per_second=streams.num_train * len(training) / (trained - started),
        )
        for place, score in zip(places, scores, strict=True)
    }
    _advance(group, metrics, streams.num_train, streams.num_val, peak_memory(worker.device))
    return metrics


def _start(
    backbone: Backbone,
    trials: Sequence[TrialConfig],
    folder: GroupFolder,
    frozen_hash: str,
    worker: Worker,
) -> Group:
    heads = StackedHeads(backbone, len(trials))
    optimizer = StackedOptimizer([trial.recipe for trial in trials], heads.parameters, heads.decays)
    saved = folder.load_rows()
    if not saved:
        best = {key: tensor.detach().clone() for key, tensor in heads.parameters.items()}
        return Group([Row(trial) for trial in trials], heads, optimizer, best)

    tensors = {key: tensor.to(worker.device) for key, tensor in folder.load_tensors(frozen_hash).items()}
    of_trials = [saved[trial.trial_id] for trial in trials]
    rows = [Row(trial, row.progress, row.error) for trial, row in zip(trials, of_trials, strict=True)]
    positions = [row.position for row in of_trials]
    places = [row.place for row in of_trials if row.place is not None]
    heads.load({key: tensors[f"parameters/{key}"][places] for key in heads.parameters})
    moments = {name: {key: tensors[f"{name}/{key}"][places] for key in heads.parameters} for name in optimizer.moments}
    optimizer.load([row.trial.recipe for row in rows if row.is_training], moments)
    return Group(rows, heads, optimizer, {key: tensors[f"best/{key}"][positions] for key in heads.parameters})


def _train_epoch(group: Group, streams: Streams, worker: Worker, epoch: int) -> tuple[list[float], list[float]]:
    """One pass over the training images -> of every row in the stack its mean training loss and its last rate."""
    recipes = [group.rows[index].trial.recipe for index in group.training()]
    steps_per_epoch = math.ceil(streams.num_train / recipes[0].batch_size)
    first = (epoch - 1) * steps_per_epoch
    factors = group.optimizer.factors(first, steps_per_epoch, steps_per_epoch, worker.device)
    held = streams.held(epoch)
    if held is not None:
        if group.held_steps is None:
            group.held_steps = HeldSteps(group.heads, group.optimizer, recipes)
        loss_sums = group.held_steps.epoch(held, factors)
    else:
        loss_sums = streamed_epoch(group.heads, group.optimizer, recipes, streams, worker, epoch, factors)
    train_losses = (loss_sums.double().cpu() / streams.num_train).tolist()
    return train_losses, group.optimizer.rates(first + steps_per_epoch - 1, steps_per_epoch).tolist()


@torch.no_grad()
def _evaluate(heads: StackedHeads, streams: Streams, worker: Worker, precision: str) -> list[Scores]:
    """Each row's scores on the validation images. The caller has set evaluation mode."""
    sums: StackedSums | None = None
    with closing(on_device(streams.val(), worker.device)) as batches:
        for batch in batches:
            logits = heads.logits(model_inputs(batch, streams, worker, precision), precision)
            sums = sums or StackedSums(logits.shape[1], logits.shape[2], worker.device)
            sums.update(logits, batch.labels)
    assert sums is not None, "a split without images passed the manifest"
    return sums.result()


def _advance(group: Group, metrics: dict[int, EpochMetrics], num_train: int, num_val: int, memory: int) -> None:
    """Note an epoch for the rows (by position) that are in the stacks, keep the best, drop those that have ended."""
    improved: list[int] = []
    places: list[int] = []
    for place, (index, row_metrics) in enumerate(metrics.items()):
        progress = group.rows[index].progress
        progress = replace(
            progress.after(row_metrics, num_val),
            images_seen=progress.images_seen + num_train,
            seconds=progress.seconds + row_metrics.seconds,
            peak_memory_bytes=max(progress.peak_memory_bytes, memory),
        )
        group.rows[index] = replace(group.rows[index], progress=progress)
        if progress.best_epoch == progress.epoch:
            improved.append(index)
            places.append(place)
    for key, tensor in group.heads.parameters.items():
        group.best[key][improved] = tensor.detach()[places]
    group.keep([place for place, index in enumerate(metrics) if group.rows[index].is_training])
