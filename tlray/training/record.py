"""How far a trial is, as its folder records it, and the row of one that failed. No torch: a driver reads it too."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from tlray import storage
from tlray.config import TrialConfig
from tlray.results import TrialResult
from tlray.training.epoch import EpochMetrics


@dataclass(frozen=True)
class Progress:
    """How far a trial is. `epoch` 0 means that no epoch is complete."""

    epoch: int = 0
    step: int = 0  # batches of the next epoch that are trained already (midway.py)
    best_epoch: int = 0
    history: tuple[EpochMetrics, ...] = ()
    images_seen: int = 0  # training images, every epoch counted
    prefix_images_computed: int = 0  # images pushed through frozen blocks, every pass counted
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # float16's loss scale

    @property
    def best(self) -> EpochMetrics:
        return self.history[self.best_epoch - 1]

    def after(self, metrics: EpochMetrics) -> "Progress":
        """This progress with one more epoch; a tie in validation accuracy is decided by the lower loss."""
        better = not self.history or _rank(metrics) > _rank(self.best)
        return replace(
            self,
            epoch=metrics.epoch,
            step=0,
            best_epoch=metrics.epoch if better else self.best_epoch,
            history=(*self.history, metrics),
        )


def parse_progress(fields: dict[str, Any]) -> Progress:
    """What `asdict` made of a Progress, back from JSON."""
    return Progress(**{**fields, "history": tuple(EpochMetrics(**row) for row in fields["history"])})


def load_progress(trial_uri: str) -> Progress:
    """The recorded progress, or a fresh one where the trial has not finished an epoch yet."""
    uri = storage.join(trial_uri, "progress.json")
    return parse_progress(json.loads(storage.read_text(uri))) if storage.exists(uri) else Progress()


def trial_uri(run_uri: str, trial_id: str) -> str:
    return storage.join(run_uri, "trials", trial_id)


def recorded_fields(trial: TrialConfig, progress: Progress, charged_images: int) -> dict[str, Any]:
    """The fields of a row that depend neither on how the trial ended nor on its model.

    Of trials that share activations, the first is charged with what the activation pass computed.
    """
    return {
        "trial_id": trial.trial_id,
        "backbone": trial.backbone.id,
        "weights": trial.backbone.weights,
        "strategy": trial.strategy.label,
        "params": trial.recipe.model_dump(),
        "seed": trial.seed,
        "is_baseline": trial.is_baseline,
        "images_seen": progress.images_seen,
        "prefix_images_computed": progress.prefix_images_computed + charged_images,
        "seconds": progress.seconds,
        "peak_memory_bytes": progress.peak_memory_bytes,
    }


def failed_result(trial: TrialConfig, run_uri: str, error: str) -> TrialResult:
    """The row of a trial that could not be carried out: a reason and no score."""
    progress = load_progress(trial_uri(run_uri, trial.trial_id))
    return TrialResult(**recorded_fields(trial, progress, 0), status="failed", error=error)


def _rank(metrics: EpochMetrics) -> tuple[float, float]:
    return metrics.val_accuracy, -metrics.val_loss
