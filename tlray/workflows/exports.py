"""The bundles that a run's end and `tlray export` write: its best trials and, where it is asked for, its ensemble.

bundles = export_best(run, leaderboard, top_k=1)
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.config import TrialConfig
from tlray.data.decode import decode
from tlray.data.images import SPLITS
from tlray.data.read import image_reader
from tlray.data.transforms import eval_transform
from tlray.errors import TlrayError
from tlray.export.bundle import BundleFacts, single_config, write_bundle
from tlray.export.ensemble import TrainedMember, ensemble_config, identity, view_difference
from tlray.export.files import BundleConfig
from tlray.export.mirror import mirror_gain
from tlray.export.of_run import ENSEMBLE, FOLDER, is_current, remove_outdated
from tlray.runs.calibration import trial_calibration
from tlray.runs.champion import history
from tlray.runs.combined_rows import EnsembleMember, EnsembleRow
from tlray.runs.notes import leave_note
from tlray.runs.prepare import Run
from tlray.runs.refit import exported_checkpoint, read_refit, refit_config, refit_uri
from tlray.runs.results import Leaderboard, LeaderboardRow
from tlray.runs.trials import checkpoint_of, read_recorded
from tlray.training.trial import load_trained

KEPT_OF_CHOICE = ("trial_id", "epochs", "images_seen", "seconds")  # of a refit's row, where the trial has its own
NUM_SAMPLES = 8  # test images on which the formats of an export are compared


def export_best(run: Run, leaderboard: Leaderboard, top_k: int) -> tuple[str, ...]:
    """Bundles of the `top_k` best trials that are not the baseline, then that of the ensemble where it is wanted.

    What lies there already is verified first. Bundles that are not of the trial whose rank they bear are removed, but
    for those that were ever a champion's.
    """
    best = [row for row in leaderboard.rows if row.rank and not row.is_baseline][:top_k]
    promoted = {one.export: one.checkpoint_sha256 for one in history(run.uri.rpartition("/")[0])}
    exports = [_export(run, row, leaderboard, promoted) for row in best]
    if run.config.export.ensemble and leaderboard.ensemble is not None:
        ensemble = _export_ensemble(run, leaderboard.ensemble, promoted)
        exports += [ensemble] if ensemble is not None else []
    remove_outdated(run.uri, leaderboard.rows, {*exports, *promoted})
    return tuple(exports)


def _export(run: Run, row: LeaderboardRow, leaderboard: Leaderboard, promoted: Mapping[str, str | None]) -> str:
    """The row's trial, as its refit where it has one.

    `promoted`: bundle -> checkpoint of every champion; such a bundle is not replaced by another model's.
    """
    _, checkpoint = exported_checkpoint(run.uri, row)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", row.backbone.rpartition("/")[2])
    destination = _place(run, f"{row.rank}-{name}", checkpoint, promoted)
    metrics, temperature = _metrics(run, row, leaderboard)
    tta = run.config.export.tta
    if is_current(destination, metrics, checkpoint, run.manifest.classes, tta):
        return destination
    trial, home = _trial(run, row.trial_id), run.uri
    if read_refit(run.uri, row) is not None:
        trial, home = refit_config(trial, row), refit_uri(run.uri)
    backbone = load_trained(trial, home, len(run.manifest.classes))
    config = single_config(
        backbone.model,
        trial.backbone,
        run.manifest.classes,
        backbone.preprocessing,
        row.strategy,
        trial.params if home != run.uri else row.params,
    )
    told = {"trial_id": row.trial_id, "checkpoint_sha256": checkpoint, "temperature": temperature, "tta": tta}
    return _write(run, [backbone.model], config.model_copy(update=told), metrics, destination)


def _write(
    run: Run, networks: Sequence[nn.Module], config: BundleConfig, metrics: Mapping[str, Any], destination: str
) -> str:
    """With what the mirror image is worth, where the bundle averages over it."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        of_class = np.bincount(run.manifest.split(split).labels, minlength=len(config.classes)).tolist()
        counts[split] = dict(zip(config.classes, of_class, strict=True))
    if config.tta == "flip":
        read, test = image_reader(run.config.data), run.manifest.split("test")
        metrics = {**metrics, "tta": mirror_gain(networks, config, [partial(read, one) for one in test], test.labels)}
    facts = BundleFacts(metrics, counts, run.manifest.warnings)
    return write_bundle(networks, config, _samples(run, config.image_preprocessing), facts, destination)


def _metrics(run: Run, row: LeaderboardRow, leaderboard: Leaderboard) -> tuple[dict[str, Any], float]:
    """What a bundle says of its model, and the temperature of its logits.

    A refit has the test scores of its own, and the validation scores of the trial that was chosen.
    """
    metrics = row.model_dump(mode="json")
    recorded = read_recorded(run.uri, row.trial_id)
    assert recorded is not None, "a row of the leaderboard is a trial's"
    refit = leaderboard.refit if leaderboard.refit is not None and leaderboard.refit.trial_id == row.trial_id else None
    calibration = trial_calibration(run.uri, recorded) if refit is None else refit.calibration
    if refit is not None:
        of_refit = refit.model_dump(mode="json", exclude={"calibration"})
        metrics |= {key: value for key, value in of_refit.items() if key in metrics and key not in KEPT_OF_CHOICE}
        metrics["refit"] = of_refit
    metrics["calibration"] = calibration.model_dump(mode="json") if calibration is not None else None
    return metrics, calibration.temperature if calibration is not None else 1.0


def _export_ensemble(run: Run, row: EnsembleRow, promoted: Mapping[str, str | None]) -> str | None:
    """One bundle of all members; None, with a note of the run, where their inputs cannot be made from one image."""
    checkpoints = [checkpoint_of(run.uri, member.trial_id)[1] for member in row.members]
    weights = [member.weight for member in row.members]
    combined = identity(list(zip(checkpoints, weights, strict=True)))
    destination = _place(run, ENSEMBLE, combined, promoted)
    metrics = row.model_dump(mode="json")
    tta = run.config.export.tta
    if is_current(destination, metrics, combined, run.manifest.classes, tta):
        return destination
    members = [_trained(run, member, sha256) for member, sha256 in zip(row.members, checkpoints, strict=True)]
    try:
        config = ensemble_config(members, run.manifest.classes, row.calibration.temperature)
    except TlrayError as error:
        leave_note(run.uri, f"{FOLDER}/{ENSEMBLE} is not exported: {error}")
        return None
    difference = view_difference(members, config, partial(_samples, run))
    networks = [member.backbone.model for member in members]
    described = {**metrics, "view_difference": difference}
    return _write(run, networks, config.model_copy(update={"tta": tta}), described, destination)


def _trained(run: Run, member: EnsembleMember, checkpoint: str) -> TrainedMember:
    trial = _trial(run, member.trial_id)
    return TrainedMember(
        backbone=load_trained(trial, run.uri, len(run.manifest.classes)),
        built_from=trial.backbone,
        strategy=member.strategy,
        params=trial.recipe.model_dump(),
        weight=member.weight,
        temperature=member.temperature,
        trial_id=member.trial_id,
        checkpoint_sha256=checkpoint,
    )


def _place(run: Run, name: str, checkpoint: str, promoted: Mapping[str, str | None]) -> str:
    destination = storage.join(run.uri, FOLDER, name)
    is_taken = promoted.get(destination, checkpoint) != checkpoint
    return f"{destination}-{checkpoint[:8]}" if is_taken else destination


def _trial(run: Run, trial_id: str) -> TrialConfig:
    return next(trial for trial in run.trials if trial.trial_id == trial_id)


def _samples(run: Run, preprocessing: Preprocessing) -> torch.Tensor:
    """A few test images (B, 3, H, W) uint8, as the evaluation sees them."""
    read = image_reader(run.config.data)
    images = [read(image) for image in run.manifest.split("test")[:NUM_SAMPLES]]
    return torch.stack(
        [eval_transform(torch.from_numpy(decode(data)).permute(2, 0, 1), preprocessing) for data in images]
    )
