"""The ensemble of a run: which of its trials it is made of, and how good the mean of their probabilities is.

    row, reason = make_ensemble(run_uri, recorded, seed=0)

Made from the trials' predictions alone, without a forward pass: it costs next to nothing and is part of every
leaderboard. `export.ensemble` makes a bundle of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.runs.calibration import calibrate, fit_temperature, log_loss, tempered
from tlray.runs.combined_rows import EnsembleMember, EnsembleRow
from tlray.runs.predictions import (
    PREDICTED_SPLITS,
    Predicted,
    PredictedSplit,
    load_correctness,
    load_probabilities,
)
from tlray.runs.results import TrialResult, paired_gain, ranked, standard_error
from tlray.runs.selection import mean_log_probabilities, select
from tlray.runs.trials import Recorded, for_each

MOST_MEMBERS = 5  # an image costs as many forwards
MOST_ERRORS = 3  # below the highest validation accuracy; a member further away costs the mean more than it adds
LEAST_IMAGES = 500  # of the validation split; with fewer, which weights are best is chance (docs/results/quality.md)
# Best first by validation. A choice from more fits the validation images' noise (Caruana, Munson & Niculescu-Mizil,
# Getting the Most Out of Ensemble Selection, ICDM 2006, prune for that reason).
MOST_CANDIDATES = 100


def make_ensemble(
    run_uri: str, recorded: Mapping[str, Recorded], *, seed: int
) -> tuple[EnsembleRow | None, str | None]:
    """The row, or why there is none; `recorded`: all trials that have ended."""
    results = ranked(one.result for one in recorded.values())
    best = [result for result in results if not result.is_baseline][:MOST_CANDIDATES]
    found = for_each([result.trial_id for result in best], lambda trial_id: _of_truth(run_uri, recorded[trial_id]))
    truth = {trial_id: one.truth for trial_id, one in found.items() if one is not None}
    temperatures = {trial_id: one.temperature for trial_id, one in found.items() if one is not None}
    if len(truth) < 2:
        return None, _too_few(len(best), len(truth))
    weights = member_weights([result for result in best if result.trial_id in truth], truth)
    if len(weights) < 2:
        return None, f"no trial of another backbone or strategy comes close to {next(iter(weights))}"
    parts = {trial_id: (weight, temperatures[trial_id]) for trial_id, weight in weights.items()}
    val, test = (_mean(run_uri, recorded, parts, split) for split in PREDICTED_SPLITS)
    if val is None or test is None:
        return None, _too_few(len(weights), 0)
    baseline = next((one for one in recorded.values() if one.result.is_baseline), None)
    correct = test.logs.argmax(axis=1) == test.labels
    over_best = paired_gain(correct, load_correctness(run_uri, recorded[best[0].trial_id]), seed)
    gain: tuple[float | None, float | None, float | None] = (None, None, None)
    if baseline is not None and baseline.result.status != "failed":
        gain = paired_gain(correct, load_correctness(run_uri, baseline), seed)
    members = [recorded[trial_id].result for trial_id in weights]
    return _row(members, parts, len(truth), (val, test), gain + over_best), None


def member_weights(results: Sequence[TrialResult], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each member's part; `results` best first, `truth` by trial id.

    The best trial of each backbone, in equal parts: backbones err on different images. Trials that are clearly worse
    than the best have none. Where there are enough validation images, greedy selection goes on from there.
    """
    results = _good_enough(results)
    ids = [result.trial_id for result in results]
    start = _first_of_each(results, lambda one: one.backbone)
    if len(start) < 2:
        start = _first_of_each(results, lambda one: one.strategy)
    start = start[:MOST_MEMBERS]
    if len(next(iter(truth.values()))) < LEAST_IMAGES:
        return {ids[place]: 1 / len(start) for place in start}
    counts = select(np.stack([truth[trial_id] for trial_id in ids]), MOST_MEMBERS, start)
    return {ids[place]: count / sum(counts.values()) for place, count in counts.items()}


def _good_enough(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Those within MOST_ERRORS standard errors of the highest validation accuracy."""
    best = max(results, key=lambda one: one.val_accuracy or 0.0)
    highest = best.val_accuracy or 0.0
    error = standard_error(highest, best.num_val_images) if best.num_val_images else 1.0
    return [one for one in results if (one.val_accuracy or 0.0) >= highest - MOST_ERRORS * error]


def _first_of_each(results: Sequence[TrialResult], kind: Callable[[TrialResult], str]) -> list[int]:
    """Place of the first trial of each kind."""
    firsts: dict[str, int] = {}
    for place, result in enumerate(results):
        firsts.setdefault(kind(result), place)
    return list(firsts.values())


@dataclass(frozen=True)
class SplitScores:
    accuracy: float
    loss: float
    top5_accuracy: float
    macro_f1: float


def scores_of(predicted: Predicted) -> SplitScores:
    """As `ClassificationSums` counts them, without torch."""
    logs, labels = predicted.logs, predicted.labels
    answers = logs.argmax(axis=1)
    num_classes = logs.shape[1]
    best = np.argpartition(-logs, min(5, num_classes) - 1, axis=1)[:, :5]
    hits = np.bincount(labels[answers == labels], minlength=num_classes)
    sizes = np.bincount(answers, minlength=num_classes) + np.bincount(labels, minlength=num_classes)
    return SplitScores(
        accuracy=float((answers == labels).mean()),
        loss=log_loss(logs, labels),
        top5_accuracy=float((best == labels[:, None]).any(axis=1).mean()),
        macro_f1=float((2 * hits[sizes > 0] / sizes[sizes > 0]).mean()),
    )


@dataclass(frozen=True)
class _Candidate:
    truth: np.ndarray  # (N,) what it gives the true class of each validation image, at its temperature
    temperature: float


def _of_truth(run_uri: str, recorded: Recorded) -> _Candidate | None:
    """What a selection knows of a trial; None where it has kept no probabilities.

    Each trial is calibrated first: of a hundred images, the log loss would else choose the confident ones, not those
    that are right, and in a mean the confident ones would count for more.
    """
    val = load_probabilities(run_uri, recorded, "val")
    if val is None:
        return None
    temperature = fit_temperature(val.logs, val.labels)
    truth = np.exp(tempered(val.logs, temperature)[np.arange(len(val.labels)), val.labels])
    return _Candidate(truth, temperature)


def _too_few(num_trials: int, num_kept: int) -> str:
    if num_trials < 2:
        return "it takes two trials beside the baseline"
    return (
        f"{num_kept} of {num_trials} trials have kept their probabilities: an earlier version of tlray kept none, and "
        "very large splits keep none"
    )


def _mean(
    run_uri: str, recorded: Mapping[str, Recorded], members: Mapping[str, tuple[float, float]], split: PredictedSplit
) -> Predicted | None:
    """Log of the mean of `members`, (weight, temperature) by trial, on a split; None where one has not kept it."""
    parts = [load_probabilities(run_uri, recorded[trial_id], split) for trial_id in members]
    kept = [part for part in parts if part is not None]
    if len(kept) < len(parts):
        return None
    weights, temperatures = zip(*members.values(), strict=True)
    logs = [tempered(part.logs, temperature) for part, temperature in zip(kept, temperatures, strict=True)]
    return Predicted(kept[0].labels, mean_log_probabilities(logs, list(weights)))


def _row(
    results: Sequence[TrialResult],
    parts: Mapping[str, tuple[float, float]],
    num_candidates: int,
    splits: tuple[Predicted, Predicted],
    gains: tuple[float | None, ...],
) -> EnsembleRow:
    val, test = (scores_of(split) for split in splits)
    params = [result.num_params for result in results if result.num_params is not None]
    names = ("gain", "gain_low", "gain_high", "gain_over_best", "gain_over_best_low", "gain_over_best_high")
    members = [
        EnsembleMember(
            trial_id=result.trial_id,
            backbone=result.backbone,
            strategy=result.strategy,
            weight=parts[result.trial_id][0],
            temperature=parts[result.trial_id][1],
        )
        for result in results
    ]
    return EnsembleRow(
        members=tuple(sorted(members, key=lambda member: (-member.weight, member.trial_id))),
        num_candidates=num_candidates,
        **{f"val_{name}": score for name, score in vars(val).items()},
        **{f"test_{name}": score for name, score in vars(test).items()},
        **dict(zip(names, gains, strict=True)),
        num_params=sum(params) if len(params) == len(results) else None,
        seconds=sum(result.seconds for result in results),
        calibration=calibrate(splits[0].logs, splits[0].labels, splits[1].logs, splits[1].labels),
    )
