"""What a run folder holds, read for the report: also of a run that is unfinished or has failed trials."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tlray import storage
from tlray.config import RunConfig
from tlray.config.file import parse_config
from tlray.data.manifest import Manifest, Split
from tlray.errors import DataError
from tlray.report.ranking import Found, read_found
from tlray.runs.board import make_leaderboard
from tlray.runs.budget.clock import Spent, read_spent
from tlray.runs.bundle_sums import METRICS, read_checksums
from tlray.runs.bundle_sums import read_verified as read_bundle_file
from tlray.runs.calibration import trial_calibration
from tlray.runs.combined_rows import Calibration
from tlray.runs.folder import CONFIG, PLAN, read_verified
from tlray.runs.manifest import load_manifest
from tlray.runs.predictions import read_predictions
from tlray.runs.results import Leaderboard
from tlray.runs.trials import for_each, read_recorded, trial_uri
from tlray.training.record import load_history

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class ClassCounts:
    name: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Confusion:
    """The champion on the test split: images (C, C) int64, rows true, columns predicted."""

    classes: tuple[str, ...]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Rows divided by their sums, (C, C) in [0, 1]; zeros for a class without test images."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    def largest_errors(self, most: int) -> list[tuple[str, str, int, float]]:
        """(true, predicted, images, share of the true class), most images first."""
        errors = self.counts.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(self.classes)) for place in order]
        shares = self.shares
        return [
            (self.classes[i], self.classes[j], int(errors[i, j]), float(shares[i, j]))
            for i, j in pairs
            if errors[i, j] > 0
        ]


@dataclass(frozen=True)
class RunContent:
    uri: str
    config: RunConfig
    config_text: str
    planned: tuple[str, ...]  # trial ids
    manifest: Manifest
    leaderboard: Leaderboard
    histories: dict[str, list[dict[str, Any]]]  # trial id -> its epochs, of every trial that has begun
    confusion: Confusion | None  # None while there is no champion
    mirror_gains: dict[str, dict[str, Any]] = field(default_factory=dict)  # by export, where it averages over a flip
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # of the champion and of the ensemble
    found: Found | None = None  # what became of the ranking, where there was one
    spent: Spent | None = None  # where there was a budget

    @cached_property
    def unfinished(self) -> tuple[str, ...]:
        """Planned trials without a final row that a resume would go on with."""
        done = {row.trial_id for row in self.leaderboard.rows} | set(self.left_out)
        return tuple(trial_id for trial_id in self.planned if trial_id not in done)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Planned trials that the budget had no room for."""
        return self.spent.dropped if self.spent is not None else ()

    @cached_property
    def class_counts(self) -> list[ClassCounts]:
        classes = self.manifest.classes
        counts = [np.bincount(self.manifest.split(split).labels, minlength=len(classes)) for split in SPLITS]
        return [ClassCounts(name, *map(int, row)) for name, *row in zip(classes, *counts, strict=True)]

    @cached_property
    def num_images(self) -> dict[str, int]:
        return {split: len(self.manifest.split(split)) for split in SPLITS}


def read_run(run_uri: str) -> RunContent:
    """Everything that the report shows; StorageError where `run_uri` is not a run folder."""
    run_uri = storage.absolute(run_uri)
    config_text = read_verified(run_uri, CONFIG).decode()
    config = parse_config(config_text, source=run_uri)
    plan = json.loads(read_verified(run_uri, PLAN))
    planned = tuple(trial["trial_id"] for trial in plan["trials"])
    manifest = load_manifest(run_uri)
    leaderboard = make_leaderboard(run_uri, seed=config.seed)
    champion = leaderboard.champion
    return RunContent(
        uri=run_uri,
        config=config,
        config_text=config_text,
        planned=planned,
        manifest=manifest,
        leaderboard=leaderboard,
        histories=_read_histories(run_uri, planned),
        found=read_found(run_uri, leaderboard),
        spent=read_spent(run_uri),
        mirror_gains=_read_mirror_gains(run_uri),
        calibrations=_read_calibrations(run_uri, leaderboard),
        confusion=_read_confusion(run_uri, champion.trial_id, manifest.classes) if champion is not None else None,
    )


def _read_histories(run_uri: str, trial_ids: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    histories = for_each(trial_ids, lambda trial_id: load_history(trial_uri(run_uri, trial_id)))
    return {trial_id: [asdict(metrics) for metrics in history] for trial_id, history in histories.items() if history}


def _read_mirror_gains(run_uri: str) -> dict[str, dict[str, Any]]:
    """What the whole exports there are have measured of their mirror images."""
    folder = storage.join(run_uri, "exports")
    try:
        files = [file.uri for file in storage.list_files(folder) if file.uri.endswith(f"/{METRICS}")]
    except storage.NotFoundError:
        return {}
    found = {}
    for bundle in sorted(uri.rpartition("/")[0] for uri in files):
        try:
            metrics = json.loads(read_bundle_file(bundle, METRICS, read_checksums(bundle)))
        except DataError:  # `tlray export` makes it again; the rest of the report does not need it
            continue
        if metrics.get("tta") is not None:
            found[bundle.rpartition("/")[2]] = metrics["tta"]
    return found


def _read_calibrations(run_uri: str, leaderboard: Leaderboard) -> dict[str, Calibration]:
    found: dict[str, Calibration] = {}
    champion, ensemble = leaderboard.champion, leaderboard.ensemble
    recorded = read_recorded(run_uri, champion.trial_id) if champion is not None else None
    calibration = trial_calibration(run_uri, recorded) if recorded is not None else None
    if champion is not None and calibration is not None:
        found[champion.trial_id] = calibration
    if leaderboard.refit is not None and leaderboard.refit.calibration is not None:
        found[leaderboard.refit.title] = leaderboard.refit.calibration
    if ensemble is not None:
        found[ensemble.title] = ensemble.calibration
    return found


def _read_confusion(run_uri: str, trial_id: str, classes: tuple[str, ...]) -> Confusion:
    recorded = read_recorded(run_uri, trial_id)
    assert recorded is not None, "the champion has a row"
    table = read_predictions(run_uri, recorded, "test", ["label", "predicted"])
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (table["label"].to_numpy(), table["predicted"].to_numpy()), 1)
    return Confusion(classes, counts)
