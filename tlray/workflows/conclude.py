"""After the last trial: leaderboard, export bundles, report, DONE. Nothing here needs Ray.

outcome = conclude(run, console)      # the same after a sweep, after a resume and after a local trial
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from rich.console import Console

from tlray import storage
from tlray.data.decode import decode
from tlray.data.images import Split
from tlray.data.read import image_reader
from tlray.data.transforms import eval_transform
from tlray.errors import TrialError
from tlray.export import export_bundle
from tlray.export.of_run import FOLDER, is_current, remove_outdated
from tlray.report import agreement_table, leaderboard_table, read_found, write_report
from tlray.runs.board import write_leaderboard
from tlray.runs.champion import history
from tlray.runs.notes import read_notes
from tlray.runs.prepare import Run, finish
from tlray.runs.results import Leaderboard, LeaderboardRow, Outcome
from tlray.runs.trials import checkpoint_of, load_results
from tlray.training.trial import load_trained

NUM_SAMPLES = 8  # test images on which the formats of an export are compared


def conclude(run: Run, console: Console) -> Outcome:
    """Rank, export, report; TrialError with the reasons when no trial has succeeded."""
    leaderboard = write_leaderboard(run.uri, seed=run.config.seed, warnings=run.manifest.warnings)
    for note in read_notes(run.uri):
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(leaderboard_table(leaderboard))
    found = read_found(run.uri, leaderboard)
    if found is not None:
        console.print(agreement_table(found))
    if not any(row.rank for row in leaderboard.rows):
        _end_if_not_whole(run, leaderboard)
        reasons = sorted({result.error or "" for result in load_results(run.uri)})
        raise TrialError(f"every trial failed: {'; '.join(reasons)}")
    write_report(run.uri)  # before the exports: what a sweep has found is shown even where a format fails
    _end_if_not_whole(run, leaderboard)
    exports = export_best(run, leaderboard, run.config.export.top_k)
    finish(run)
    return Outcome(run.uri, leaderboard, exports)


def _end_if_not_whole(run: Run, leaderboard: Leaderboard) -> None:
    """TrialError where trials failed for what a resume can mend: the run is not done, its best trial not known."""
    failed = [row for row in leaderboard.rows if row.may_pass]
    if failed:
        raise TrialError(
            f"{len(failed)} of {len(leaderboard.rows)} trials failed for a reason that may pass "
            f"({failed[0].trial_id}: {failed[0].error}); `tlray resume {run.uri}` tries them again"
        )


def export_best(run: Run, leaderboard: Leaderboard, top_k: int) -> tuple[str, ...]:
    """Bundles of the `top_k` best trials that are not the baseline: what lies there already is verified first.

    Bundles that are not of the trial whose rank they bear are removed, but for those that were ever a champion's.
    """
    best = [row for row in leaderboard.rows if row.rank and not row.is_baseline][:top_k]
    promoted = {one.export: one.checkpoint_sha256 for one in history(run.uri.rpartition("/")[0])}
    exports = tuple(_export(run, row, promoted) for row in best)
    remove_outdated(run.uri, leaderboard.rows, {*exports, *promoted})
    return exports


def _export(run: Run, row: LeaderboardRow, promoted: Mapping[str, str | None]) -> str:
    """`promoted`: bundle -> checkpoint of every champion; such a bundle is not replaced by another model's."""
    _, checkpoint = checkpoint_of(run.uri, row.trial_id)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", row.backbone.rpartition("/")[2])
    destination = storage.join(run.uri, FOLDER, f"{row.rank}-{name}")
    if promoted.get(destination, checkpoint) != checkpoint:
        destination = f"{destination}-{checkpoint[:8]}"
    if is_current(destination, row, checkpoint, run.manifest.classes):
        return destination
    trial = next(trial for trial in run.trials if trial.trial_id == row.trial_id)
    backbone = load_trained(trial, run.uri, len(run.manifest.classes))
    read = image_reader(run.config.data)
    images = [read(image) for image in run.manifest.split("test")[:NUM_SAMPLES]]
    samples = [
        eval_transform(torch.from_numpy(decode(data)).permute(2, 0, 1), backbone.preprocessing) for data in images
    ]
    return export_bundle(
        model=backbone.model,
        backbone=trial.backbone,
        classes=run.manifest.classes,
        preprocessing=backbone.preprocessing,
        strategy=row.strategy,
        params=row.params,
        metrics=row.model_dump(mode="json"),
        data_summary={
            split: dict(zip(run.manifest.classes, _class_counts(run, split), strict=True))
            for split in ("train", "val", "test")
        },
        warnings=run.manifest.warnings,
        samples=torch.stack(samples),
        destination=destination,
        checkpoint_sha256=checkpoint,
    )


def _class_counts(run: Run, split: Split) -> list[int]:
    labels = run.manifest.split(split).labels
    return np.bincount(labels, minlength=len(run.manifest.classes)).tolist()
