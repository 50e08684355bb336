"""Logistic regressions solved together are those that scikit-learn solves one by one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from tlray.training import probe_solution
from tlray.training.logistic import Basis, minimise
from tlray.training.probe_solution import FOLDS, STRENGTHS, solve, stratified_folds

torch.set_num_threads(1)
TOLERANCE = 2e-4  # in probability
PATH = (1e-4, 1e-2, 1.0, 1e2, 1e4)


def made_up(num_images: int, num_features: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred features (N, D) that tell the classes apart in part; the second is the first again."""
    random = np.random.default_rng([num_images, num_features, num_classes])
    labels = np.arange(num_images) % num_classes
    features = random.normal(size=(num_images, num_features))
    features += 0.5 * random.normal(size=(num_classes, num_features))[labels]
    features[:, 1] = features[:, 0]
    return features - features.mean(axis=0), labels


def theirs(strength: float, features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None):
    return LogisticRegression(C=strength, tol=1e-10, max_iter=50_000).fit(features, labels, sample_weight=weights)


def ours(strengths: list[float], features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probabilities (P, N, C); weights (P, N)."""
    basis = Basis.of(torch.tensor(features))
    num_classes = int(labels.max()) + 1
    solved = minimise(
        basis.rows,
        torch.tensor(labels),
        num_classes,
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(strengths, dtype=torch.float64),
    )
    logits = torch.tensor(features) @ (basis.axes @ solved.weights) + solved.biases[:, None]
    return logits.softmax(dim=2).numpy()


@pytest.mark.parametrize(
    ("num_images", "num_features", "num_classes"), [(6, 4, 2), (40, 9, 2), (30, 80, 3), (90, 12, 5), (60, 100, 10)]
)
def test_all_strengths_at_once_are_scikit_learns_one_by_one(
    num_images: int, num_features: int, num_classes: int
) -> None:
    features, labels = made_up(num_images, num_features, num_classes)
    probabilities = ours(list(PATH), features, labels, np.ones((len(PATH), num_images)))
    for strength, found in zip(PATH, probabilities, strict=True):
        expected = theirs(strength, features, labels).predict_proba(features)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_images_that_a_problem_holds_out_do_not_count_in_it() -> None:
    features, labels = made_up(60, 8, 3)
    weights = np.ones((3, 60))
    weights[0, :20], weights[1, 40:] = 0, 0
    weights[2] = np.linspace(0.1, 2, 60)
    for row, found in enumerate(ours([1.0, 1.0, 1.0], features, labels, weights)):
        expected = theirs(1.0, features, labels, weights[row]).predict_proba(features)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_solved_probe_is_the_best_strength_of_the_folds_on_standardised_features(num_classes: int) -> None:
    features, labels = made_up(50, 30, num_classes)
    features = 7 + features * np.linspace(0.01, 30, 30)
    features[:, 5] = 3.25  # constant
    solution = solve([torch.tensor(features)], torch.tensor(labels), num_classes, seed=1)
    scaled = StandardScaler().fit_transform(features)
    folds = stratified_folds(labels, seed=1)
    assert len(solution.held_out) in (5, 7, 10)
    for strength, loss in solution.held_out.items():
        out = np.zeros((50, num_classes))
        for fold in range(FOLDS):
            model = theirs(strength, scaled[folds != fold], labels[folds != fold])
            out[folds == fold] = model.predict_proba(scaled[folds == fold])
        assert loss == pytest.approx(log_loss(labels, out), rel=0.05)  # of folds that are told apart perfectly
    assert solution.strength == min(solution.held_out, key=lambda strength: solution.held_out[strength])
    expected = theirs(solution.strength, scaled, labels).predict_proba(scaled)
    logits = torch.tensor(features, dtype=torch.float32) @ solution.weight.T + solution.bias
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=TOLERANCE)
    assert solution.loss == pytest.approx(log_loss(labels, expected), abs=1e-3)
    assert not solution.weight[:, 5].any()


def test_a_portion_of_the_problems_at_a_time_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = (torch.tensor(part) for part in made_up(40, 12, 3))
    whole = solve([features], labels, 3, seed=0)
    monkeypatch.setattr(probe_solution, "LARGEST_STACK", 200_000)  # seven problems of fifty
    parts = solve([features], labels, 3, seed=0)
    assert parts.strength == whole.strength
    assert list(parts.held_out.values()) == pytest.approx(list(whole.held_out.values()), rel=1e-3)
    torch.testing.assert_close(parts.weight, whole.weight)


def test_folds_spread_every_class_evenly_and_never_hold_out_an_only_image() -> None:
    labels = np.array([0] * 12 + [1] * 3 + [2])
    folds = stratified_folds(labels, seed=0)
    assert sorted(np.bincount(folds[:12], minlength=FOLDS)) == [2, 2, 2, 3, 3]
    assert len(set(folds[12:15])) == 3
    assert folds[15] == -1
    assert (stratified_folds(labels, seed=0) == folds).all()
    assert (stratified_folds(labels, seed=1) != folds).any()


def test_one_image_a_class_and_classes_without_any_are_no_obstacle() -> None:
    features = torch.eye(3, 8)
    solution = solve([features], torch.tensor([0, 1, 3]), num_classes=5, seed=0)
    assert solution.held_out == {}
    assert solution.strength in STRENGTHS
    logits = features @ solution.weight.T + solution.bias
    assert logits.argmax(dim=1).tolist() == [0, 1, 3]
    assert float(logits.softmax(dim=1)[:, [2, 4]].max()) < 1e-6


def test_features_far_from_zero_keep_their_digits() -> None:
    features, labels = made_up(40, 6, 2)
    near = solve([torch.tensor(features)], torch.tensor(labels), 2, seed=0)
    far = solve([torch.tensor(features + 1000)], torch.tensor(labels), 2, seed=0)
    torch.testing.assert_close(far.weight, near.weight, rtol=1e-4, atol=1e-6)


def test_augmented_draws_are_further_rows_that_share_the_weight_of_their_image() -> None:
    features, labels = made_up(40, 10, 3)
    other = features + 0.3 * np.random.default_rng(5).normal(size=features.shape)
    solution = solve([torch.tensor(features), torch.tensor(other)], torch.tensor(labels), 3, seed=0)
    plain = solve([torch.tensor(features)], torch.tensor(labels), 3, seed=0)
    assert solution.held_out == plain.held_out, "the strength is chosen on what is not augmented"
    both = StandardScaler().fit(np.concatenate([features, other]))
    rows, twice = both.transform(np.concatenate([features, other])), np.concatenate([labels, labels])
    expected = theirs(solution.strength, rows, twice, np.full(80, 0.5)).predict_proba(both.transform(features))
    logits = torch.tensor(features, dtype=torch.float32) @ solution.weight.T + solution.bias
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=TOLERANCE)
    again = solve([torch.tensor(features)] * 3, torch.tensor(labels), 3, seed=0)
    torch.testing.assert_close(again.weight, plain.weight, rtol=1e-3, atol=1e-5)
