"""What a sweep hands on, as values: one row a trial, and the leaderboard made of the rows. runs/ keeps them in files.

    leaderboard = build_leaderboard(results, correctness, seed=0)

A failed trial is a row with its reason; it has no score and no rank. Accuracies are fractions in [0, 1] and so is the
gain: test accuracy minus the baseline's, with a confidence interval from a paired bootstrap of the test images.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tlray.errors import TlrayError
from tlray.runs.combined_rows import EnsembleRow, RefitRow

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
    may_pass: bool = False  # failed by what it ran on, not by itself: a resume is worth its time
    note: str | None = None  # what one should know beside the scores: that it was repeated in float32, and why
    epochs: int = 0  # trained
    best_epoch: int | None = None  # 1-based
    val_accuracy: Score = None
    val_loss: Loss = None  # nats per image
    val_top5_accuracy: Score = None
    val_macro_f1: Score = None
    val_calibrated_loss: Loss = None  # the loss at the temperature fitted on the same images (runs/calibration.py)
    num_val_images: int | None = None
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
    """All trials, best first by `ranked`, failed ones last; the baseline's row has `is_baseline`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[LeaderboardRow, ...]
    num_test_images: int | None  # None while no trial has a score
    no_gain_reason: str | None  # why no row has a gain, if so
    confidence: float = CONFIDENCE
    num_resamples: int = NUM_RESAMPLES
    seed: int
    warnings: tuple[str, ...] = ()  # of the images, as in the manifest: what makes scores flatter
    ensemble: EnsembleRow | None = None  # of several trials; not among the rows, as an image costs it more
    no_ensemble_reason: str | None = None
    refit: RefitRow | None = None  # of the champion, with export.refit

    @property
    def champion(self) -> LeaderboardRow | None:
        """The best trial beside the baseline."""
        return next((row for row in self.rows if row.rank is not None and not row.is_baseline), None)

    @property
    def is_ordered_by_loss(self) -> bool:
        """Whether a trial stands above one of higher validation accuracy."""
        accuracies = [row.val_accuracy or 0.0 for row in self.rows if row.rank is not None]
        return any(above < below for above, below in pairwise(accuracies))

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


def build_leaderboard(
    results: Sequence[TrialResult], correctness: Mapping[str, np.ndarray], seed: int = 0
) -> Leaderboard:
    """Rank `results`. `correctness`: trial id -> bool (N,) over the test images in one order, for trials that did
    not fail; TlrayError when two of them differ in N."""
    scored = ranked(results)
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


def ranked(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Those that did not fail, best first.

    Trials within one standard error of the highest validation accuracy are in the order of their calibrated loss: on
    few images the accuracy cannot tell them apart, and the loss of a model says more of each image than right or wrong.
    """
    scored = sorted((result for result in results if result.status != "failed"), key=_by_accuracy)
    if not scored:
        return []
    least = least_accuracy(scored[0].val_accuracy or 0.0, scored[0].num_val_images)
    near = [one for one in scored if (one.val_accuracy or 0.0) >= least]
    return [*sorted(near, key=lambda one: _finite(one.val_calibrated_loss)), *scored[len(near) :]]


def least_accuracy(highest: float, num_images: int | None) -> float:
    """What is within one standard error of the highest accuracy; the highest itself where nobody counted the images."""
    return highest if num_images is None else highest - standard_error(highest, num_images)


def standard_error(accuracy: float, num_images: int) -> float:
    """Of an accuracy in [0, 1]; an image right and one wrong are added, or a perfect one would have none."""
    share = (accuracy * num_images + 1) / (num_images + 2)
    return math.sqrt(share * (1 - share) / num_images)


def _by_accuracy(result: TrialResult) -> tuple[float, float, str]:
    return -(result.val_accuracy or 0.0), _finite(result.val_loss), result.trial_id


def _finite(loss: float | None) -> float:
    return math.inf if loss is None else loss


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
