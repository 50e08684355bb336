"""ranking/: every score against values that something else computed.

The numbers in PUBLISHED were written by the authors' code on `generated` inputs: LogME and LEEP by thuml/LogME at
56551ca (its fixed-point version in float64, and LEEP.py), both H-scores by thuml/Transfer-Learning-Library at c4aa59e
(tllib/ranking/hscore.py). Nothing else of that code is here.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr, weightedtau
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier

from tlray.ranking.correlation import spearman, weighted_tau
from tlray.ranking.hscore import adjusted_h_score, h_score, ledoit_wolf, regularised_h_score
from tlray.ranking.knn import NUM_NEIGHBOURS, TEMPERATURE, knn
from tlray.ranking.leep import leep
from tlray.ranking.linear_probe import STRENGTHS, accuracies, linear_probe, standardised
from tlray.ranking.logme import logme
from tlray.ranking.mixture import FLOOR, expectation, fit_mixture, maximisation
from tlray.ranking.nleep import nleep, principal_components
from tlray.ranking.scores import NAMES, score_features

# (images, features, classes, seed): LogME, H-score, regularised H-score, LEEP of `probabilities`
PUBLISHED = {
    (200, 20, 3, 0): (-0.25103286236212646, 1.4706961861031043, 1.4200684061027624, -0.7960097987216918),
    (500, 64, 10, 1): (0.3059452286438097, 6.897002314545642, 6.442617242360533, -1.7311724027840214),
    (90, 90, 2, 3): (0.2484753540606512, 1.000000000002275, 0.9766129099246166, -0.4816983796816067),
}
CASES = [pytest.param(case, values, id="x".join(map(str, case[:3]))) for case, values in PUBLISHED.items()]
Case = tuple[int, int, int, int]
Score = Callable[[np.ndarray, np.ndarray], float]


def generated(num_images: int, width: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes around centres of their own, cut off at zero as ReLU's outputs are: (N, D) float32, (N,) int."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    features = random.normal(size=(num_images, width)) + 0.8 * random.normal(size=(num_classes, width))[labels]
    return np.maximum(features, 0).astype(np.float32), labels


def probabilities(features: np.ndarray) -> np.ndarray:
    powers = np.exp(features[:, :15] * 2)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("case", "published"), CASES)
def test_the_scores_are_those_of_the_authors_code(case: Case, published: tuple[float, float, float, float]) -> None:
    features, labels = generated(*case)
    found = (
        logme(features, labels),
        h_score(features, labels),
        regularised_h_score(features, labels),
        leep(probabilities(features), labels),
    )
    assert found == pytest.approx(published, rel=1e-4)
    assert found[1:] == pytest.approx(published[1:], rel=1e-9)


@pytest.mark.parametrize("case", [(60, 100, 3, 2), (80, 10, 2, 4)], ids=["wide", "narrow"])
def test_logme_is_the_largest_evidence_of_the_linear_model(case: Case) -> None:
    """Also with more features than images, where the authors' fixed-point code leaves out a part of a determinant."""
    features, labels = generated(*case)
    values = features.astype(np.float64)

    def largest(target: np.ndarray) -> float:
        def negative(logs: np.ndarray) -> float:
            alpha, beta = np.exp(logs)
            covariance = np.eye(len(target)) / beta + values @ values.T / alpha
            return -float(multivariate_normal(np.zeros(len(target)), covariance).logpdf(target))

        return -minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).fun

    evidences = [largest((labels == label).astype(np.float64)) / len(labels) for label in range(case[2])]
    assert logme(features, labels) == pytest.approx(np.mean(evidences), rel=1e-4)


def test_shrinkage_is_scikit_learns_on_either_side_of_square() -> None:
    for case in ((200, 20, 3, 0), (40, 100, 2, 1)):
        features, _ = generated(*case)
        assert ledoit_wolf(features) == pytest.approx(LedoitWolf().fit(features.astype(np.float64)).shrinkage_)


def test_chance_of_the_h_score_is_its_mean_over_shuffled_labels() -> None:
    features, labels = generated(40, 100, 4, 5)
    random = np.random.default_rng(0)
    shuffled = [regularised_h_score(features, random.permutation(labels)) for _ in range(400)]
    chance, spread = float(np.mean(shuffled)), float(np.std(shuffled)) / 20
    score, adjusted = regularised_h_score(features, labels), adjusted_h_score(features, labels)
    most = 3 * 40 / 39  # the published code divides the two covariances by 39 and 40
    expected = (adjusted * most - score) / (adjusted - 1)  # solved for the chance that the adjustment took away
    assert abs(expected - chance) < 4 * spread
    assert chance > 0.5 * score  # which is why it is taken away


def test_h_score_of_more_features_than_images_says_nothing_and_the_adjusted_one_does() -> None:
    features, labels = generated(60, 200, 3, 0)
    noise = np.random.default_rng(1).normal(size=features.shape)
    assert h_score(features, labels) == pytest.approx(h_score(noise, labels)) == pytest.approx(2)
    assert adjusted_h_score(features, labels) > 0.5
    assert abs(adjusted_h_score(noise, labels)) < 0.1


def test_leep_is_its_definition_written_out() -> None:
    features, labels = generated(50, 20, 3, 6)
    given = probabilities(features)
    total = 0.0
    for image, label in enumerate(labels):
        likelihood = 0.0
        for source in range(given.shape[1]):
            joint = sum(given[other, source] for other in range(50) if labels[other] == label)
            likelihood += joint / sum(given[other, source] for other in range(50)) * given[image, source]
        total += math.log(likelihood)
    assert leep(given, labels) == pytest.approx(total / 50)


def test_leep_ignores_source_classes_that_no_image_resembles() -> None:
    features, labels = generated(50, 20, 3, 6)
    given = probabilities(features)
    assert leep(np.pad(given, ((0, 0), (0, 3))), labels) == pytest.approx(leep(given, labels))


def test_principal_components_are_scikit_learns_up_to_their_sign() -> None:
    features, _ = generated(120, 20, 3, 0)
    expected = PCA(n_components=0.8).fit_transform(features.astype(np.float64))
    assert np.abs(principal_components(features)) == pytest.approx(np.abs(expected), abs=1e-9)


def test_a_step_of_the_mixture_is_scikit_learns() -> None:
    points = principal_components(generated(150, 12, 3, 7)[0])
    start = np.eye(4)[np.random.default_rng(0).integers(4, size=len(points))]
    weights, means, covariances = maximisation(points, start)
    reference = GaussianMixture(
        4, weights_init=weights, means_init=means, precisions_init=np.linalg.inv(covariances), reg_covar=FLOOR
    )
    reference._initialize_parameters(points, np.random.RandomState(0))
    found, likelihood = expectation(points, weights, means, covariances)
    expected, logs = reference._e_step(points)
    assert found == pytest.approx(np.exp(logs), abs=1e-8)
    assert likelihood == pytest.approx(expected)


def test_the_mixture_finds_clusters_that_are_there() -> None:
    random = np.random.default_rng(0)
    truth = np.arange(200) % 4
    points = 10 * random.normal(size=(4, 3))[truth] + random.normal(size=(200, 3))
    found = fit_mixture(points, 4, seed=0).argmax(axis=1)
    assert len({(one, other) for one, other in zip(truth, found, strict=True)}) == 4
    assert leep(fit_mixture(points, 4, seed=0), truth) > -0.01
    assert nleep(points, truth) > nleep(points, random.integers(4, size=200)) + 1


def test_nearest_neighbours_are_those_of_scikit_learn_without_the_image_itself() -> None:
    features, labels = generated(80, 6, 3, 8)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / TEMPERATURE)

    right = 0
    for image in range(len(labels)):
        others = np.arange(len(labels)) != image
        reference = KNeighborsClassifier(NUM_NEIGHBOURS, weights=weights, metric="cosine")
        reference.fit(features[others], labels[others])
        right += int(reference.predict(features[[image]])[0] == labels[image])
    assert knn(features, labels) == right / len(labels)


def test_linear_probe_is_ridge_regression_trained_without_each_image() -> None:
    features, labels = generated(40, 60, 3, 9)
    values, targets = standardised(features), np.eye(3)[labels]
    for strength, found in zip(STRENGTHS, accuracies(features, labels), strict=True):
        right = 0
        for image in range(len(labels)):
            others = np.arange(len(labels)) != image
            reference = Ridge(alpha=strength * len(labels)).fit(values[others], targets[others])
            right += int(reference.predict(values[[image]])[0].argmax() == labels[image])
        assert found == right / len(labels)
    assert linear_probe(features, labels) == max(accuracies(features, labels))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "leep"])
def test_every_score_prefers_features_that_know_the_classes(name: str) -> None:
    features, labels = generated(120, 30, 3, 10)
    noise = np.maximum(np.random.default_rng(0).normal(size=features.shape), 0)
    known, unknown = (score_features(values, labels, None, seed=0)[name] for values in (features, noise))
    assert known is not None
    assert unknown is not None
    assert known > unknown


@pytest.mark.parametrize("name", [name for name in NAMES if name != "leep"])
def test_a_score_depends_on_neither_the_unit_of_the_features_nor_the_numbers_of_the_classes(name: str) -> None:
    features, labels = generated(90, 16, 3, 11)
    expected = score_features(features, labels, None, seed=0)[name]
    for values, numbers in ((features * 1000, labels), (features, np.array([7, 2, 40])[labels])):
        assert score_features(values, numbers, None, seed=0)[name] == pytest.approx(expected, rel=1e-5)


def test_features_that_are_the_same_for_every_image_have_no_scores() -> None:
    with pytest.raises(ValueError, match="the same for every image"):
        score_features(np.full((20, 8), 0.25, np.float32), np.arange(20) % 2, None, seed=0)


def test_correlations_are_scipys_with_ties_too() -> None:
    random = np.random.default_rng(0)
    for num in (3, 5, 12):
        for _ in range(10):
            x, y = random.integers(0, 6, (2, num)).astype(float)
            x[0], x[1], y[0], y[1] = 6, -1, 6.5, -1  # not all equal
            assert spearman(x, y) == pytest.approx(spearmanr(x, y)[0])
            assert weighted_tau(x, y) == pytest.approx(weightedtau(x, y)[0])


def test_a_correlation_with_what_never_changes_is_not_defined() -> None:
    assert spearman([1, 2, 3], [5, 5, 5]) is None
    assert weighted_tau([1, 2, 3], [5, 5, 5]) is None
    assert weighted_tau([], []) is None
