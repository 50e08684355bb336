"""The statistics of a retraining against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from tlray.workflows.retrain.drift import (
    auc,
    classifier_auc,
    energy_distance,
    measure_drift,
    pairwise_distances,
    standardised,
    total_variation,
)
from tlray.workflows.retrain.paired import fair_coin_tail, mcnemar


@pytest.mark.parametrize("tosses", [1, 4, 5, 30, 1000, 100_000])
def test_the_tail_of_a_fair_coin_is_scipys_binomial_test(tosses: int) -> None:
    for heads in sorted({0, 1, tosses // 3, tosses // 2, tosses // 2 + 1, (2 * tosses) // 3, tosses}):
        expected = stats.binomtest(heads, tosses, 0.5, alternative="greater").pvalue
        assert fair_coin_tail(heads, tosses) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_mcnemar_counts_what_only_one_gets_right_and_tests_it_exactly() -> None:
    challenger = np.array([True] * 70 + [False] * 30)
    champion = np.array([True] * 50 + [False] * 20 + [True] * 5 + [False] * 25)
    test = mcnemar(challenger, champion)
    assert (test.num_images, test.only_challenger, test.only_champion) == (100, 20, 5)
    assert test.p_value == pytest.approx(stats.binom.sf(19, 25, 0.5))


def test_without_a_difference_there_is_no_evidence() -> None:
    same = np.array([True, False, True])
    assert mcnemar(same, same).p_value == 1.0
    assert mcnemar(np.array([], bool), np.array([], bool)).p_value == 1.0


def test_equal_models_are_called_better_no_more_often_than_stated() -> None:
    """3,000 pairs of models that are right with 80 % each, on 200 images."""
    generator = np.random.default_rng(0)
    right = generator.random((2, 3000, 200)) < 0.8
    promoted = sum(mcnemar(one, other).p_value <= 0.05 for one, other in zip(*right, strict=True))
    assert promoted / 3000 <= 0.05 + 3 * (0.05 * 0.95 / 3000) ** 0.5


def test_distances_between_all_rows_are_scipys() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 7))
    assert pairwise_distances(rows) == pytest.approx(cdist(rows, rows), abs=1e-7)


def test_the_energy_distance_in_one_dimension_is_the_square_of_scipys() -> None:
    generator = np.random.default_rng(1)
    old, new = generator.normal(size=80), generator.normal(0.5, 2.0, size=50)
    rows = np.concatenate([old, new])[:, None]
    found = energy_distance(pairwise_distances(rows), np.arange(130) >= 80)
    assert found == pytest.approx(stats.energy_distance(old, new) ** 2)


def test_the_area_under_the_roc_curve_is_scikit_learns_with_ties_too() -> None:
    generator = np.random.default_rng(2)
    scores, positive = np.round(generator.normal(size=300), 1), generator.random(300) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_standardised_features_have_mean_zero_and_spread_one_and_constant_ones_are_zero() -> None:
    features = np.random.default_rng(3).normal(5.0, 3.0, size=(50, 3))
    features[:, 1] = 7.0
    found = standardised(features)
    assert found.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-12)
    assert found.std(axis=0) == pytest.approx([1, 0, 1])


def test_the_classifier_cannot_tell_equals_apart_and_tells_others() -> None:
    generator = np.random.default_rng(4)
    is_new = np.arange(150) >= 75
    areas = [classifier_auc(standardised(generator.normal(size=(150, 16))), is_new) for _ in range(40)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)
    shifted = generator.normal(size=(150, 16))
    shifted[75:, :3] += 2
    assert classifier_auc(standardised(shifted), is_new) > 0.95


def test_total_variation_is_half_the_difference_of_the_shares() -> None:
    assert total_variation(["a"] * 3 + ["b"], ["a", "b", "b", "b"]) == pytest.approx(0.5)
    assert total_variation(["a"], ["b"]) == 1.0
    assert total_variation(["a", "b"], ["b", "a", "a", "b"]) == 0.0


def test_drift_is_small_for_images_of_the_same_kind_and_large_for_others() -> None:
    generator = np.random.default_rng(5)
    labels = ["x", "y"] * 60
    centre = np.array([[3.0] if label == "x" else [-3.0] for label in labels])
    old, alike = (centre + generator.normal(size=(120, 8)) for _ in range(2))
    moved = alike + [2, -2] * 4  # not along the line from class to class, where it could be taken for other shares
    same, other = measure_drift(old, labels, alike, labels), measure_drift(old, labels, moved, labels)
    assert same.energy_p_value > 0.05
    assert same.energy < 0.1 < other.energy
    assert other.energy_p_value < 0.01
    assert abs(same.auc - 0.5) < 0.15
    assert other.auc > 0.95


def test_wrong_labels_disagree_with_the_nearest_old_images() -> None:
    generator = np.random.default_rng(6)
    labels = ["x", "y"] * 40
    centre = np.array([[3.0] if label == "x" else [-3.0] for label in labels])
    old, new = (centre + generator.normal(size=(80, 4)) for _ in range(2))
    wrong = ["y" if place < 20 and label == "x" else label for place, label in enumerate(labels)]
    found = measure_drift(old, labels, new, wrong)
    assert found.old_disagreement == 0.0
    assert found.new_disagreement == pytest.approx(10 / 80)


def test_the_vote_of_the_neighbours_is_that_of_scikit_learns_neighbours() -> None:
    generator = np.random.default_rng(7)
    old, new = generator.normal(size=(60, 5)), generator.normal(size=(40, 5))
    old_labels, new_labels = generator.integers(0, 2, 60), generator.integers(0, 2, 40)
    features = standardised(np.concatenate([old, new]))
    nearest = NearestNeighbors(n_neighbors=10).fit(features[:60]).kneighbors(features[60:], return_distance=False)
    votes = old_labels[nearest].sum(axis=1)
    expected = np.mean((votes > 5) != new_labels)  # a tie goes to the first class
    found = measure_drift(old, [f"c{label}" for label in old_labels], new, [f"c{label}" for label in new_labels])
    assert found.new_disagreement == pytest.approx(expected)


def test_a_class_that_the_old_images_lack_has_no_neighbours_to_disagree_with() -> None:
    generator = np.random.default_rng(8)
    found = measure_drift(generator.normal(size=(20, 3)), ["a", "b"] * 10, generator.normal(size=(10, 3)), ["c"] * 10)
    assert found.new_disagreement is None
    assert found.class_shares == 1.0
