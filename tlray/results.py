"""What a sweep hands on: one row a trial in results.jsonl, and the leaderboard made of the rows.

    append_result(run_uri, result); load_results(run_uri)
    leaderboard = write_leaderboard(run_uri, seed=0)      # from results.jsonl and every trial's test predictions

A failed trial is a row with its reason; it has no score and no rank. Accuracies are fractions in [0, 1] and so is the
gain: test accuracy minus the baseline's, with a confidence interval from a paired bootstrap of the test images.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tlray import parquet, storage
from tlray.errors import TlrayError, plain_reason

Score = Annotated[float, Field(ge=0, le=1)] | None
# A diverged trial may have an infinite validation loss, which JSON cannot hold: None then.
Loss = Annotated[float | None, BeforeValidator(lambda loss: loss if loss is not None and math.isfinite(loss) else None)]

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


class TrialResult(BaseModel):
    """The final row of a trial. Scores are those of its best epoch; a failed trial has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial_id: str
    backbone: str
    weights: str
    strategy: str  # with its argument: "partial(2)"
    params: dict[str, Any]  # the recipe
    seed: int
    is_baseline: bool = False
    status: Literal["completed", "stopped", "failed"]  # stopped: early, by the scheduler
    error: str | None = None
    epochs: int = 0  # trained
    best_epoch: int | None = None  # 1-based
    val_accuracy: Score = None
    val_loss: Loss = None  # nats per image
    val_top5_accuracy: Score = None
    val_macro_f1: Score = None
    test_accuracy: Score = None
    test_top5_accuracy: Score = None
    test_macro_f1: Score = None
    num_params: int | None = None  # unknown where a trial failed before its model was built
    num_trainable_params: int | None = None
    images_seen: int = 0  # training images, every epoch counted
    prefix_images_computed: int = 0  # images pushed through frozen blocks
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    checkpoint: str | None = None

    @model_validator(mode="after")
    def scores_fit_the_status(self) -> "TrialResult":
        validation = (self.val_accuracy, self.val_loss, self.val_top5_accuracy, self.val_macro_f1)
        test = (self.test_accuracy, self.test_top5_accuracy, self.test_macro_f1)
        has_score = any(score is not None for score in (*validation, *test))
        if self.status == "failed" and (self.error is None or has_score):
            raise ValueError(f"{self.trial_id}: a failed trial has a reason and no score")
        if self.status != "failed" and (self.val_accuracy is None or self.test_accuracy is None):
            raise ValueError(f"{self.trial_id}: a {self.status} trial has a validation and a test accuracy")
        return self


class LeaderboardRow(TrialResult):
    """A trial's row with its place; gain and its interval are fractions, None where they cannot be had."""

    rank: int | None = None  # 1-based; None for a failed trial
    gain: float | None = None  # test accuracy minus the baseline's
    gain_low: float | None = None
    gain_high: float | None = None


class Leaderboard(BaseModel):
    """All trials, best validation accuracy first, failed ones last; the baseline's row has `is_baseline`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[LeaderboardRow, ...]
    num_test_images: int | None  # None while no trial has a score
    no_gain_reason: str | None  # why no row has a gain, if so
    confidence: float = CONFIDENCE
    num_resamples: int = NUM_RESAMPLES
    seed: int

    @property
    def champion(self) -> LeaderboardRow | None:
        """The best trial beside the baseline."""
        return next((row for row in self.rows if row.rank is not None and not row.is_baseline), None)

    @property
    def baseline(self) -> LeaderboardRow | None:
        return next((row for row in self.rows if row.is_baseline), None)


class UnreadableImage(BaseModel):
    model_config = ConfigDict(frozen=True)

    uri: str
    reason: str


class Evaluation(BaseModel):
    """A model's scores on labelled images, fractions in [0, 1]; unreadable images are in none of them."""

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]  # of the model, in its order
    num_images: int
    accuracy: float
    top5_accuracy: float
    macro_f1: float  # mean over the classes that occur as a label or a prediction
    loss: float  # nats per image
    recall: dict[str, float | None]  # by class; None without images
    confusion: tuple[tuple[int, ...], ...]  # images: rows true, columns predicted
    bad: tuple[UnreadableImage, ...]
    notes: tuple[str, ...] = ()  # how the folders were understood, where that is a question


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its folder, its leaderboard and the bundles it exported."""

    run_uri: str
    leaderboard: Leaderboard
    exports: tuple[str, ...]


def stopped_marker(run_uri: str, trial_id: str) -> str:
    """The file that says that the scheduler stopped a trial, which is still to be scored."""
    return storage.join(run_uri, "trials", trial_id, "stopped")


def append_result(run_uri: str, result: TrialResult) -> None:
    """Add a row to results.jsonl. Object stores cannot append, so the file is rewritten, atomically, everywhere."""
    uri = _results_uri(run_uri)
    text = storage.read_text(uri) if storage.exists(uri) else ""
    whole_lines = text[: text.rfind("\n") + 1]  # a line that a kill has torn is dropped
    storage.write_text(uri, whole_lines + result.model_dump_json() + "\n")


def load_results(run_uri: str) -> list[TrialResult]:
    """Rows in the order in which trials ended; of a trial recorded twice the last row. Empty before the first row.

    A last line without its end is what a kill leaves and is ignored; any other broken line is a TlrayError.
    """
    uri = _results_uri(run_uri)
    if not storage.exists(uri):
        return []
    *lines, _torn = storage.read_text(uri).split("\n")
    results: dict[str, TrialResult] = {}
    for number, line in enumerate(lines, start=1):
        result = _parse(line, f"{uri}, line {number}")
        results.pop(result.trial_id, None)
        results[result.trial_id] = result
    return list(results.values())


def write_trial_result(run_uri: str, result: TrialResult) -> None:
    """The trial's own copy of its row; its presence means that the trial has ended."""
    storage.write_text(_trial_uri(run_uri, result.trial_id, "result.json"), result.model_dump_json(indent=1))


def read_trial_result(run_uri: str, trial_id: str) -> TrialResult | None:
    """The trial's final row, None while it has not ended."""
    uri = _trial_uri(run_uri, trial_id, "result.json")
    return _parse(storage.read_text(uri), uri) if storage.exists(uri) else None


def delete_trial_result(run_uri: str, trial_id: str) -> None:
    storage.delete(_trial_uri(run_uri, trial_id, "result.json"))


def load_correctness(run_uri: str, trial_id: str) -> np.ndarray:
    """Whether each test image was classified correctly: bool (N,), in the order of the test split."""
    data = storage.read_bytes(_trial_uri(run_uri, trial_id, "test_predictions.parquet"))
    table = parquet.read_table(data, ["row", "label", "predicted"]).sort_by("row")
    correct: np.ndarray = table["label"].to_numpy() == table["predicted"].to_numpy()
    return correct


def build_leaderboard(
    results: Sequence[TrialResult], correctness: Mapping[str, np.ndarray], seed: int = 0
) -> Leaderboard:
    """Rank `results`. `correctness`: trial id -> bool (N,) over the test images in one order, for trials that did
    not fail; TlrayError when two of them differ in N."""
    scored = [result for result in results if result.status != "failed"]
    scored.sort(key=lambda r: (-(r.val_accuracy or 0.0), math.inf if r.val_loss is None else r.val_loss, r.trial_id))
    failed = sorted((result for result in results if result.status == "failed"), key=lambda r: r.trial_id)
    baseline = next((result for result in results if result.is_baseline), None)
    rows = [LeaderboardRow(**vars(result), rank=rank) for rank, result in enumerate(scored, start=1)]
    if baseline is not None and baseline.status != "failed":
        reference = correctness[baseline.trial_id]
        rows = [row if row.is_baseline else _with_gain(row, correctness[row.trial_id], reference, seed) for row in rows]
    return Leaderboard(
        rows=(*rows, *(LeaderboardRow(**vars(result)) for result in failed)),
        num_test_images=len(correctness[scored[0].trial_id]) if scored else None,
        no_gain_reason=_no_gain_reason(baseline),
        seed=seed,
    )


def make_leaderboard(run_uri: str, *, seed: int = 0) -> Leaderboard:
    """The run as it stands now, from results.jsonl and the trials' test predictions."""
    results = load_results(run_uri)
    scored = [result.trial_id for result in results if result.status != "failed"]
    return build_leaderboard(results, {trial_id: load_correctness(run_uri, trial_id) for trial_id in scored}, seed)


def write_leaderboard(run_uri: str, *, seed: int = 0) -> Leaderboard:
    """The same, also written to leaderboard.json."""
    leaderboard = make_leaderboard(run_uri, seed=seed)
    storage.write_text(storage.join(run_uri, "leaderboard.json"), leaderboard.model_dump_json(indent=1))
    return leaderboard


def load_leaderboard(run_uri: str) -> Leaderboard:
    """The run's leaderboard as last written; StorageError where there is none."""
    return Leaderboard.model_validate_json(storage.read_text(storage.join(run_uri, "leaderboard.json")))


def paired_gain(
    correct: np.ndarray, reference: np.ndarray, seed: int, *, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float, float]:
    """Gain in accuracy of `correct` over `reference`, both bool (N,) over the same images -> (gain, low, high).

    Paired percentile bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): images are
    drawn with replacement, each with both models' answers. An image adds -1, 0 or 1 to the difference, so a resample
    is known from how often each of the three was drawn, and those counts are exactly multinomial: no image need be
    drawn one by one.
    """
    num_images = len(reference)
    if len(correct) != num_images:
        raise TlrayError(f"predictions for {len(correct)} and {num_images} test images cannot be paired")
    difference = correct.astype(np.int64) - reference.astype(np.int64)
    shares = np.bincount(difference + 1, minlength=3) / num_images
    drawn = np.random.default_rng(seed).multinomial(num_images, shares, size=num_resamples)
    gains = (drawn[:, 2] - drawn[:, 0]) / num_images
    low, high = np.quantile(gains, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(difference.mean()), float(low), float(high)


def _with_gain(row: LeaderboardRow, correct: np.ndarray, reference: np.ndarray, seed: int) -> LeaderboardRow:
    gain, low, high = paired_gain(correct, reference, seed)
    return row.model_copy(update={"gain": gain, "gain_low": low, "gain_high": high})


def _no_gain_reason(baseline: TrialResult | None) -> str | None:
    if baseline is None:
        return "the baseline has not ended yet"
    if baseline.status == "failed":
        return f"the baseline failed: {baseline.error}"
    return None


def _parse(text: str, where: str) -> TrialResult:
    try:
        return TrialResult.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise TlrayError(f"{where}: not JSON ({error.msg}); remove it and `tlray resume` the run") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise TlrayError(f"{where}: not a trial's row: {field} {plain_reason(problem)}") from None


def _results_uri(run_uri: str) -> str:
    return storage.join(run_uri, "results.jsonl")


def _trial_uri(run_uri: str, trial_id: str, name: str) -> str:
    return storage.join(run_uri, "trials", trial_id, name)
