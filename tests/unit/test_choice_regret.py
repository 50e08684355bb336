"""The oracle of benchmarks/choice.py and the regret to it."""

import pytest

from benchmarks.choice_regret import CHOOSERS, noise_free, regrets


def test_the_oracle_is_the_best_mean_and_not_the_luckiest_seed() -> None:
    lucky, steady = "lucky", "steady"
    scores = [{lucky: 99.0, steady: 90.0}, {lucky: 70.0, steady: 91.0}]
    assert noise_free(scores) == {lucky: 84.5, steady: 90.5}


def test_a_configuration_without_a_score_with_every_seed_is_no_oracle() -> None:
    assert noise_free([{"a": 99.0, "b": 80.0}, {"b": 82.0}]) == {"b": 81.0}


def test_regret_to_the_exhaustive_sweep_is_negative_where_the_choice_is_better() -> None:
    models = dict.fromkeys(CHOOSERS, 80.0)
    rows = [
        {**models, "scores": {"a": 90.0, "b": 70.0}, "choice": 86.0},
        {**models, "scores": {"a": 84.0, "b": 88.0}, "choice": 84.0, "asha": 70.0},
    ]
    found = regrets(rows)
    assert found["mean_regret_points"] == pytest.approx(87 - 85)
    assert found["regret_to_exhaustive_points"] == pytest.approx(80 - 85)
    assert found["asha_regret_points"] == pytest.approx(87 - 75)
