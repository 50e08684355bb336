"""How far a trial is, as its folder records it, and the row of one that failed. No torch: a driver reads it too."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tlray import storage
from tlray.config import TrialConfig
from tlray.errors import DamagedError
from tlray.runs.results import TrialResult, least_accuracy
from tlray.runs.trials import TRAIN_AGAIN, trial_uri
from tlray.storage.sealed import read_document, sealed, unsealed, write_document
from tlray.training.epoch import EpochMetrics
from tlray.training.repeat import as_it_trains

PROGRESS, HISTORY = "progress.json", "history.jsonl"


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
    files: dict[str, str] = field(default_factory=dict)  # sha256, by name, of the checkpoints that it goes on from
    before: "Progress | None" = None  # where to go on from when one of them is damaged; its own `before` is None

    @property
    def best(self) -> EpochMetrics:
        return self.history[self.best_epoch - 1]

    @property
    def peak(self) -> EpochMetrics:
        """The epoch of the highest validation accuracy; a tie is decided by the lower loss, then by the earlier one."""
        return max(self.history, key=lambda one: (one.val_accuracy, -one.val_loss, -one.epoch))

    def after(self, metrics: EpochMetrics, num_val: int) -> "Progress":
        """This progress with one more epoch, measured on `num_val` images.

        The best epoch is the latest whose validation accuracy is within one standard error of the highest: the rule
        of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3). On few images the highest
        itself is luck, and what trained longer under a falling rate does better on new images.
        """
        after = replace(self, epoch=metrics.epoch, step=0, history=(*self.history, metrics))
        if metrics.val_accuracy >= least_accuracy(after.peak.val_accuracy, num_val):
            return replace(after, best_epoch=metrics.epoch)
        return after


def parse_progress(fields: dict[str, Any]) -> Progress:
    """What `asdict` made of a Progress, back from JSON."""
    before = parse_progress(fields["before"]) if fields["before"] is not None else None
    return Progress(**{**fields, "history": tuple(EpochMetrics(**row) for row in fields["history"]), "before": before})


def load_progress(trial_uri: str) -> Progress:
    """The recorded progress, or a fresh one where the trial has not finished an epoch yet; DamagedError."""
    try:
        return parse_progress(read_document(storage.join(trial_uri, PROGRESS), TRAIN_AGAIN))
    except storage.NotFoundError:
        return Progress()


def save_progress(trial_uri: str, progress: Progress) -> None:
    write_document(storage.join(trial_uri, PROGRESS), asdict(progress))


def save_history(trial_uri: str, progress: Progress) -> None:
    """A line for each epoch, for people and other programs; and for the curve of a trial that has failed."""
    rows = "".join(sealed(asdict(row)) + "\n" for row in progress.history)
    storage.write_text(storage.join(trial_uri, HISTORY), rows)


def load_history(trial_uri: str) -> tuple[EpochMetrics, ...]:
    """Every epoch of a trial, also of one that has failed; empty before the first.

    Either of the two files that hold it is enough. DamagedError where one is damaged and the other is not there.
    """
    try:
        progress = load_progress(trial_uri)
        return progress.history or history_lines(trial_uri)
    except DamagedError as error:
        history = history_lines(trial_uri)
        if not history:
            raise error from None
        return history


def history_lines(trial_uri: str) -> tuple[EpochMetrics, ...]:
    """What history.jsonl holds; DamagedError."""
    uri = storage.join(trial_uri, HISTORY)
    try:
        *lines, torn = storage.read_bytes(uri).decode().split("\n")
        if torn:
            raise ValueError("the last line has no end")
        return tuple(EpochMetrics(**unsealed(line)) for line in lines)
    except storage.NotFoundError:
        return ()
    except ValueError:
        raise DamagedError.of(uri, "remove it, and the trial has no curve; the next resume trains it again") from None


def recorded_fields(trial: TrialConfig, progress: Progress, charged_images: int) -> dict[str, Any]:
    """The fields of a row that depend neither on how the trial ended nor on its model.

    Of trials that share activations, the first is charged with what the activation pass computed.
    """
    return {
        "trial_id": trial.trial_id,
        "backbone": trial.backbone.id,
        "weights": trial.backbone.weights,
        "strategy": trial.strategy.label,
        "params": trial.params,
        "seed": trial.seed,
        "is_baseline": trial.is_baseline,
        "images_seen": progress.images_seen,
        "prefix_images_computed": progress.prefix_images_computed + charged_images,
        "seconds": progress.seconds,
        "peak_memory_bytes": progress.peak_memory_bytes,
    }


def failed_result(trial: TrialConfig, run_uri: str, error: str, *, may_pass: bool = False) -> TrialResult:
    """The row of a trial that could not be carried out: a reason and no score."""
    folder = trial_uri(run_uri, trial.trial_id)
    trial, note = as_it_trains(trial, folder)
    fields = recorded_fields(trial, load_progress(folder), 0)
    return TrialResult(**fields, status="failed", error=error, note=note, may_pass=may_pass)
