"""Greedy selection, the mean of probabilities, temperature and calibration error, against other ways to compute them.

Run: python -m pytest tests/unit/test_ensemble_selection.py
"""

import itertools

import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics
from scipy.special import log_softmax, softmax

from tlray.runs.calibration import (
    PRIOR_DEVIATION,
    calibrate,
    calibrated_loss,
    calibration_error,
    fit_temperature,
    log_loss,
)
from tlray.runs.ensemble import LEAST_IMAGES, MOST_MEMBERS, member_weights, scores_of
from tlray.runs.predictions import Predicted
from tlray.runs.results import TrialResult
from tlray.runs.selection import mean_log_probabilities, select


def test_the_selection_is_the_one_computed_by_hand():
    """Two images, three models. Alone: -ln(.9 * .2)/2 = .857, -ln(.3 * .8)/2 = .714, -ln(.5 * .5)/2 = .693.

    So model 2 is first. With it, 0 gives (.7, .35): .703; 1 (.4, .65): .674; 2 itself .693: model 1 is second. Then the
    sums (.8, 1.3) + 0 make (.567, .5): .631; + 1: .660; + 2: .668: model 0 is third, and so on to .55 for all images.
    """
    truth = np.array([[0.9, 0.2], [0.3, 0.8], [0.5, 0.5]])
    counts = select(truth, most_members=3)
    weights = np.array([counts.get(place, 0) for place in range(3)]) / sum(counts.values())
    found = -np.log(weights @ truth).mean()
    finest = min(
        -np.log(np.array(parts) / 30 @ truth).mean()
        for parts in itertools.product(range(31), repeat=3)
        if sum(parts) == 30
    )
    assert {1, 2} <= counts.keys()
    assert found <= 0.631
    assert found == pytest.approx(finest, abs=0.01)


def greedy(truth: np.ndarray, rounds: int) -> list[int]:
    """Caruana's loop, written down once more."""
    return greedy_from(truth, [], rounds)


def greedy_from(truth: np.ndarray, start: list[int], rounds: int) -> list[int]:
    chosen = list(start)
    for _ in range(rounds):
        losses = [-np.log(truth[[*chosen, place]].mean(axis=0)).mean() for place in range(len(truth))]
        chosen.append(int(np.argmin(losses)))
    return chosen[len(start) :]


def test_the_counts_are_those_of_the_best_prefix_of_the_greedy_choices():
    truth = np.random.default_rng(0).uniform(0.05, 1, (6, 40))
    chosen = greedy(truth, 30)
    losses = [-np.log(truth[chosen[: n + 1]].mean(axis=0)).mean() for n in range(30)]
    prefix = chosen[: next(n for n, loss in enumerate(losses) if loss <= min(losses) + 1e-6) + 1]
    assert select(truth, most_members=6) == {place: prefix.count(place) for place in sorted(set(prefix))}


def test_no_more_models_are_chosen_than_allowed_and_a_useless_one_never():
    truth = np.random.default_rng(0).uniform(0.05, 1, (8, 30))
    truth[3] = 1e-9
    assert len(select(truth, most_members=8)) > 2
    assert len(select(truth, most_members=2)) == 2
    assert 3 not in select(truth, most_members=8)


def test_a_selection_goes_on_from_its_start_and_keeps_it():
    truth = np.random.default_rng(0).uniform(0.05, 1, (6, 40))
    chosen = [4, 1, *greedy_from(truth, [4, 1], 28)]
    losses = [-np.log(truth[chosen[:n]].mean(axis=0)).mean() for n in range(2, 31)]
    prefix = chosen[: 2 + next(n for n, loss in enumerate(losses) if loss <= min(losses) + 1e-6)]
    assert select(truth, 6, [4, 1]) == {place: prefix.count(place) for place in sorted(set(prefix))}
    assert select(np.array([[0.9, 0.9], [0.1, 0.1]]), 1, [0]) == {0: 1}


def test_a_model_that_is_best_for_every_image_is_chosen_alone():
    truth = np.array([[0.9, 0.9, 0.8], [0.8, 0.9, 0.7], [0.1, 0.2, 0.3]])
    assert select(truth, most_members=3) == {0: 1}


def test_the_mean_is_that_of_the_probabilities():
    logits = np.random.default_rng(1).normal(size=(2, 7, 4))
    mean = mean_log_probabilities([log_softmax(one, axis=1) for one in logits], [0.25, 0.75])
    np.testing.assert_allclose(np.exp(mean), 0.25 * softmax(logits[0], 1) + 0.75 * softmax(logits[1], 1))


def overconfident(num_images: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits `factor` times as large as those that the labels are drawn from."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(num_images, 5)) * 2
    labels = np.array([random.choice(5, p=softmax(row)) for row in logits])
    return factor * logits, labels


def test_the_temperature_is_the_one_of_least_log_loss():
    logits, labels = overconfident(2000, 3.0)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature), axis=1)
        data = 2000 * sklearn.metrics.log_loss(labels, probabilities)
        return data + 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2

    found = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(found.x), rel=1e-4)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.1)


def test_a_model_that_is_right_about_every_one_of_few_images_does_not_become_certain():
    logits = np.eye(5)[np.arange(20) % 5] * 3
    assert 0.3 < fit_temperature(logits, np.arange(20) % 5) < 1


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_calibration_lowers_error_and_loss_on_other_images_and_changes_no_class(factor: float):
    logits, labels = overconfident(4000, factor)
    found = calibrate(logits[:2000], labels[:2000], logits[2000:], labels[2000:])
    assert found.ece_after < 0.03 < 0.1 < found.ece_before
    assert found.loss_after < found.loss_before
    assert (logits / found.temperature).argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()


def test_the_calibration_error_is_the_papers_sum_over_fifteen_bins():
    logits, labels = overconfident(500, 2.0)
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(expected)


@pytest.mark.parametrize("num_classes", [2, 8])
def test_an_ensembles_scores_are_those_of_scikit_learn(num_classes: int):
    random = np.random.default_rng(5)
    logs = log_softmax(random.normal(size=(60, num_classes)), axis=1)
    labels = random.integers(0, num_classes - 1, 60)  # the last class never occurs
    found, answers = scores_of(Predicted(labels, logs)), logs.argmax(axis=1)
    assert found.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, answers))
    assert found.macro_f1 == pytest.approx(sklearn.metrics.f1_score(labels, answers, average="macro"))
    every = range(num_classes)
    assert found.loss == pytest.approx(sklearn.metrics.log_loss(labels, np.exp(logs), labels=every))
    assert log_loss(logs + 3, labels) == pytest.approx(found.loss)
    k = min(5, num_classes)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, logs, k=k, labels=every) if num_classes > 2 else 1.0
    assert found.top5_accuracy == pytest.approx(top5)


def test_the_calibrated_loss_is_that_at_the_fitted_temperature_and_none_of_what_is_no_number() -> None:
    random = np.random.default_rng(0)
    logs, labels = 5 * random.normal(size=(80, 4)), random.integers(0, 4, 80)
    loss = calibrated_loss(logs, labels)
    assert loss == pytest.approx(log_loss(logs / fit_temperature(logs, labels), labels))
    assert loss < log_loss(logs, labels)
    assert calibrated_loss(np.where(logs > 9, np.inf, logs), labels) is None


def rows(*kinds: tuple[str, str]) -> list[TrialResult]:
    """Best first, of these backbones and strategies."""
    fields = {"weights": "none", "params": {}, "seed": 0, "status": "completed", "val_accuracy": 1, "test_accuracy": 1}
    return [
        TrialResult(trial_id=f"{place}", backbone=backbone, strategy=strategy, **fields)
        for place, (backbone, strategy) in enumerate(kinds)
    ]


def test_on_few_images_the_best_trials_of_the_backbones_have_equal_parts() -> None:
    results = rows(("a", "full"), ("a", "linear_probe"), ("b", "full"), ("c", "full"), ("b", "linear_probe"))
    truth = {one.trial_id: np.full(LEAST_IMAGES - 1, 0.9 if one.trial_id == "0" else 0.1) for one in results}
    assert member_weights(results, truth) == {"0": 1 / 3, "2": 1 / 3, "3": 1 / 3}
    many = rows(*((letter, "full") for letter in "abcdefgh"))
    assert len(member_weights(many, {one.trial_id: np.full(9, 0.5) for one in many})) == MOST_MEMBERS


def test_of_one_backbone_the_best_trials_of_the_strategies_have_equal_parts() -> None:
    results = rows(("a", "full"), ("a", "full"), ("a", "linear_probe"))
    assert member_weights(results, {one.trial_id: np.full(9, 0.5) for one in results}) == {"0": 0.5, "2": 0.5}


def test_on_many_images_the_selection_goes_on_from_the_equal_parts() -> None:
    results = rows(("a", "full"), ("b", "full"))
    truth = {"0": np.full(LEAST_IMAGES, 0.9), "1": np.full(LEAST_IMAGES, 0.1)}
    parts = member_weights(results, truth)
    assert parts["0"] > 0.9
    assert sum(parts.values()) == pytest.approx(1)


def test_a_trial_that_is_clearly_worse_than_the_best_has_no_part() -> None:
    """Of 150 images at 0.97, three standard errors are 0.045."""
    accuracies = (0.97, 0.94, 0.91)
    results = [
        one.model_copy(update={"val_accuracy": accuracy, "num_val_images": 150})
        for one, accuracy in zip(rows(("a", "full"), ("b", "full"), ("c", "full")), accuracies, strict=True)
    ]
    assert member_weights(results, {one.trial_id: np.full(9, 0.5) for one in results}) == {"0": 0.5, "1": 0.5}
