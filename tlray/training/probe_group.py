"""A group of linear probes on shared features, from the run folder to its rows: `run_trial` for many trials at once.

    results = run_probe_group(trials, run_uri, local_worker(), images, lambda trial_id, metrics: ...)

The trials have equal `fusion.fusion_key`s. Each of them ends with the same folder and the same row as if it had been
trained alone: up to the order of additions in a matrix product of another size, that is about 1e-6.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tlray.config import Recipe, TrialConfig
from tlray.data.batch import Streams
from tlray.data.to_device import on_device
from tlray.errors import TlrayError, UnreachableError
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze, hash_tensors
from tlray.models.split import trainable_suffix
from tlray.process.device import arithmetic, chosen_precision
from tlray.runs.predictions import PREDICTED_SPLITS, PredictedSplit
from tlray.runs.results import TrialResult
from tlray.runs.trials import for_each, read_states, write_trial_result
from tlray.training.checkpoint import MODEL, checkpoint_name
from tlray.training.fusion import can_fuse, fusion_key
from tlray.training.inputs import model_inputs, place
from tlray.training.loop import is_done, thaw_plan, with_precision
from tlray.training.predictions import Answers, split_batches, write_predictions
from tlray.training.probe_checkpoint import GroupFolder, Row
from tlray.training.probe_loop import GroupReport, fit_group
from tlray.training.probes import StackedHeads, fusable_suffix
from tlray.training.record import Progress, failed_result, save_history
from tlray.training.repeat import as_it_trains, begin_again
from tlray.training.trial import (
    TrialImages,
    conclude_stopped_trial,
    described,
    run_trial,
    scored_result,
    trial_folder,
)
from tlray.training.worker import Worker

LARGEST_STACK = 2**30  # bytes of parameters, gradients, moments and best parameters of the heads that train as one
LARGEST_LOGITS = 2**28  # bytes of validation and test logits held at once
COPIES = 5  # of each parameter in a stack
WRITERS = 8  # threads that write rows: a trial's folder is five small objects, which S3 takes its time for


def run_probe_group(
    trials: Sequence[TrialConfig], run_uri: str, worker: Worker, images: TrialImages, report: GroupReport
) -> list[TrialResult]:
    """Train, or continue training, all `trials` and score their best epochs on the test split -> a row for each.

    A trial that has a row keeps it, unless it failed. Probes that are solved come first, each for itself. Where
    `fusable_suffix` says that the heads cannot be stacked, the trials train one after the other. A row's seconds
    are its share of the group's: see `fit_group`.
    """
    assert len({fusion_key(trial) for trial in trials}) == 1, "only trials with equal fusion keys train as one"
    assert all(can_fuse(trial) for trial in trials), "only linear probes train as one"
    assert worker.world_size == 1, "a group trains in one process"
    states = read_states(run_uri, [trial.trial_id for trial in trials])
    finished = {
        trial_id: state.result for trial_id, state in states.items() if state.result is not None and state.is_finished
    }
    remaining = [trial for trial in trials if trial.trial_id not in finished]
    solved = [trial for trial in remaining if trial.is_solved]
    finished |= {trial.trial_id: _alone(trial, run_uri, worker, images, report) for trial in solved}
    remaining = [trial for trial in remaining if not trial.is_solved]
    if remaining:
        group = _open(remaining[0], run_uri, worker, images)
        if fusable_suffix(group.backbone) is not None:
            finished |= {trial.trial_id: _alone(trial, run_uri, worker, images, report) for trial in remaining}
            remaining = []
        elif not _begun(run_uri, remaining):
            finished |= _score_trained(remaining, run_uri, worker, images)
            remaining = [trial for trial in remaining if trial.trial_id not in finished]
        while remaining:
            part = _next_part(group, remaining)
            finished |= _run_part(group, part, report)
            remaining = [trial for trial in remaining if trial.trial_id not in finished]
    return [finished[trial.trial_id] for trial in trials]


@dataclass(frozen=True)
class _Opened:
    """What all trials of a group have in common."""

    run_uri: str
    recipe: Recipe  # of one of them: precision and determinism are the same for all
    worker: Worker
    images: TrialImages
    backbone: Backbone
    streams: Streams
    stacked: dict[str, str]  # key of the model's state dict -> the stacked parameter that it is
    unstacked: dict[str, torch.Tensor]  # what else a trial's checkpoint holds of the model, equal for all of them
    frozen_hash: str
    sizes: dict[str, Any]  # num_params and num_trainable_params of a row


def _open(trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages) -> _Opened:
    backbone = build_backbone(trial.backbone, images.num_classes, seed=trial.seed)
    place(backbone, worker)
    freeze(backbone, 0)
    streams = images.open_activations(backbone, len(backbone.blocks), trial, worker)
    assert streams is not None, "a group of probes is formed where their features are materialised"
    thaw = thaw_plan(backbone, trial)
    parameters = dict(backbone.model.named_parameters(remove_duplicate=False))
    suffix = trainable_suffix(backbone, len(backbone.blocks))
    trained = {id(p): name for name, p in suffix.named_parameters() if p.requires_grad}
    stacked = {key: trained[id(p)] for key, p in parameters.items() if id(p) in trained}
    state = backbone.model.state_dict()
    sizes = described(trial, Progress(), 0, backbone)
    return _Opened(
        run_uri=run_uri,
        recipe=trial.recipe,
        worker=worker,
        images=images,
        backbone=backbone,
        streams=streams,
        stacked=stacked,
        unstacked={key: state[key] for key in thaw.changing_keys if key not in stacked},
        frozen_hash=hash_tensors(backbone.model, thaw.frozen_keys),
        sizes={name: sizes[name] for name in ("num_params", "num_trainable_params")},
    )


def _begun(run_uri: str, remaining: Sequence[TrialConfig]) -> set[str]:
    """Ids of the trials that a killed group has begun to train."""
    folder = GroupFolder(run_uri, remaining[0].trial_id)
    folder.go_back()
    return set(folder.load_rows())


def _score_trained(
    trials: Sequence[TrialConfig], run_uri: str, worker: Worker, images: TrialImages
) -> dict[str, TrialResult]:
    """Rows of those trials whose own folders hold their whole training: only their rows were damaged."""

    def is_trained(trial_id: str) -> bool:
        folder = trial_folder(run_uri, trial_id)
        folder.go_back()
        return is_done(folder.load_progress(), recipes[trial_id])

    recipes = {trial.trial_id: trial.recipe for trial in trials}
    trained = for_each(list(recipes), is_trained)
    return {
        trial.trial_id: conclude_stopped_trial(trial, run_uri, worker, images)
        for trial in trials
        if trained[trial.trial_id]
    }


def _next_part(group: _Opened, remaining: Sequence[TrialConfig]) -> list[TrialConfig]:
    """The trials to train next: those that a killed group has begun, else as many as memory should hold."""
    begun = _begun(group.run_uri, remaining)
    if begun:
        return [trial for trial in remaining if trial.trial_id in begun]
    bytes_per_row = COPIES * 4 * group.sizes["num_trainable_params"]
    return list(remaining[: max(1, LARGEST_STACK // bytes_per_row)])


def _run_part(group: _Opened, trials: Sequence[TrialConfig], report: GroupReport) -> dict[str, TrialResult]:
    """Train these trials as one and write their rows; the group's own checkpoint goes when all are written."""
    folder = GroupFolder(group.run_uri, trials[0].trial_id)
    rows, best = fit_group(group.backbone, group.streams, trials, group.worker, folder, group.frozen_hash, report)
    precision = chosen_precision(group.recipe.precision, group.worker.device)
    again = [row for row in rows if row.error is not None] if precision != "float32" else []
    results = _write_rows(group, rows, best, {row.trial.trial_id for row in again})
    results |= {row.trial.trial_id: _repeat(group, row, precision, report) for row in again}
    folder.delete()
    return results


def _repeat(group: _Opened, row: Row, precision: str, report: GroupReport) -> TrialResult:
    """A row that diverged in reduced precision, trained alone in float32."""
    uri = trial_folder(group.run_uri, row.trial.trial_id).uri
    if as_it_trains(row.trial, uri)[1] is None:  # else a killed process has begun it
        begin_again(uri, precision, row.error or "")
    return _alone(row.trial, group.run_uri, group.worker, group.images, report)


def _write_rows(
    group: _Opened, rows: Sequence[Row], best: dict[str, torch.Tensor], left_out: set[str]
) -> dict[str, TrialResult]:
    """Every trial's folder and row. The first trial's comes last: the group's checkpoint is found by its name."""
    order = [index for index in (*range(1, len(rows)), 0) if rows[index].trial.trial_id not in left_out]
    num_images = group.streams.num_val + group.streams.num_test
    at_once = max(1, LARGEST_LOGITS // (4 * num_images * group.images.num_classes))
    results: dict[str, TrialResult] = {}
    with ThreadPoolExecutor(WRITERS) as pool:
        for start in range(0, len(order), at_once):
            portion = order[start : start + at_once]
            trained = [index for index in portion if rows[index].error is None]
            answers = _answers(group, best, trained) if trained else {}
            write = partial(_write_row, group, rows, best, answers)
            *most, last = portion
            results |= zip([rows[index].trial.trial_id for index in most], pool.map(write, most), strict=True)
            results[rows[last].trial.trial_id] = write(last)
    return results


@torch.no_grad()
def _answers(
    group: _Opened, best: dict[str, torch.Tensor], chosen: Sequence[int]
) -> dict[int, dict[PredictedSplit, Answers]]:
    """What the best epochs of the chosen rows say of the validation and the test split, in one pass over each."""
    group.backbone.model.eval()
    heads = StackedHeads(group.backbone, len(chosen))
    heads.load({key: tensor[list(chosen)] for key, tensor in best.items()})
    by_split = {split: _stacked_answers(group, heads, split) for split in PREDICTED_SPLITS}
    return {
        index: {split: replace(stacked, logits=stacked.logits[place]) for split, stacked in by_split.items()}
        for place, index in enumerate(chosen)
    }


def _stacked_answers(group: _Opened, heads: StackedHeads, split: PredictedSplit) -> Answers:
    """Those of all heads: logits (heads, N, C)."""
    streams = group.streams
    rows, labels, logits = [], [], []
    recipe = with_precision(group.recipe, group.worker.device)
    with (
        closing(on_device(split_batches(streams, split), group.worker.device)) as batches,
        arithmetic(group.worker.device, recipe.precision, deterministic=recipe.deterministic),
    ):
        for batch in batches:
            some = heads.logits(model_inputs(batch, streams, group.worker, recipe.precision), recipe.precision)
            logits.append(some.transpose(0, 1).cpu())
            rows.append(batch.rows.cpu())
            labels.append(batch.labels.cpu())
    return Answers(torch.cat(rows), torch.cat(labels), torch.cat(logits, dim=1))


def _write_row(
    group: _Opened,
    rows: Sequence[Row],
    best: dict[str, torch.Tensor],
    answers: dict[int, dict[PredictedSplit, Answers]],
    index: int,
) -> TrialResult:
    """One trial's folder: checkpoint, curve and predictions, then the row, whose presence means done.

    A trial that failed leaves its curve alone: from where it went wrong there is nothing to go on from.
    """
    trial, progress, error = rows[index].trial, rows[index].progress, rows[index].error
    folder = trial_folder(group.run_uri, trial.trial_id)
    charged = group.images.charged_images.get(trial.trial_id, 0)
    fields = described(trial, progress, charged if error is None else 0)
    if error is not None:
        save_history(folder.uri, progress)
        result, files = TrialResult(**fields, status="failed", error=error), {}
    else:
        checksum = folder.save_best(progress, _checkpoint(group, best, index), group.frozen_hash)
        scores, predictions = write_predictions(folder.uri, answers[index], group.images.content_ids)
        uri = folder.checkpoint_uri(progress.best_epoch)
        result = scored_result(fields | group.sizes, trial, progress, scores, uri)
        files = {checkpoint_name(progress.best_epoch): checksum, **predictions}
    write_trial_result(group.run_uri, result, files)
    return result


def _checkpoint(group: _Opened, best: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """What a trial trained alone keeps of its model; a parameter that has two names stands under both."""
    tensors = {MODEL + key: tensor for key, tensor in group.unstacked.items()}
    tensors |= {MODEL + key: best[name][index] for key, name in group.stacked.items()}
    return {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}


def _alone(trial: TrialConfig, run_uri: str, worker: Worker, images: TrialImages, report: GroupReport) -> TrialResult:
    """A trial that is solved, or whose head cannot be stacked; a failure with a known reason is a row too."""
    try:
        result = run_trial(trial, run_uri, worker, images, partial(report, trial.trial_id))
        assert result is not None, "a single worker leads"
    except UnreachableError:
        raise
    except TlrayError as error:
        result = failed_result(trial, run_uri, str(error), may_pass=error.may_pass)
        write_trial_result(run_uri, result)
    return result
