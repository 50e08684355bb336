"""When a challenger is promoted, and the reasons when it is not."""

from collections.abc import Sequence
from typing import Any

import pytest

from tlray.config import RetrainConfig
from tlray.workflows.retrain.verdict import SMALL, Verdict, judge

SETTINGS = {"min_test_images": 10, "min_class_images": 10}
CLASSES = ("cat", "dog")
TRUTH = ["cat"] * 50 + ["dog"] * 50


def answers(num_right: Sequence[int], truth: Sequence[str] = TRUTH, wrong: str = "nothing") -> list[str]:
    """Of each class of 50 images in turn, the first `num_right` right."""
    places = [truth[:place].count(name) for place, name in enumerate(truth)]
    names = list(dict.fromkeys(truth))
    return [name if place < num_right[names.index(name)] else wrong for name, place in zip(truth, places, strict=True)]


def verdict(challenger: Sequence[int], champion: Sequence[int], **fields: Any) -> Verdict:
    settings = RetrainConfig(**{**SETTINGS, **fields})
    return judge(TRUTH, answers(challenger), answers(champion), settings, known_to_champion=CLASSES)


def test_a_clearly_better_challenger_is_promoted_with_its_numbers() -> None:
    found = verdict([48, 47], [40, 40])
    assert found.promote
    assert (found.only_challenger, found.only_champion) == (15, 0)
    assert found.p_value == pytest.approx(2**-15)
    assert (found.challenger_accuracy, found.champion_accuracy) == (0.95, 0.8)
    assert found.difference == pytest.approx(0.15)
    assert 0 < found.difference_low < 0.15 < found.difference_high
    assert "confidence of 0.95" in found.reasons[0]


def test_four_images_more_are_not_enough_and_five_are() -> None:
    """Without a loss, p is 1/16 for four images that it alone gets right and 1/32 for five."""
    four, five = verdict([44, 40], [40, 40]), verdict([45, 40], [40, 40])
    assert not four.promote
    assert "not better with a confidence of 0.95" in four.reasons[0]
    assert five.promote
    assert not verdict([45, 40], [40, 40], confidence=0.99).promote


def test_an_equal_and_a_worse_one_are_refused() -> None:
    assert not verdict([40, 40], [40, 40]).promote
    worse = verdict([30, 30], [40, 40])
    assert not worse.promote
    assert worse.p_value == 1.0


def test_a_class_that_falls_too_far_refuses_what_is_better_on_the_whole() -> None:
    found = verdict([50, 36], [30, 40])
    assert found.p_value < 0.05
    assert found.reasons == (
        "recall of dog falls from 80.0 to 72.0 %, by more than retrain.max_class_drop 0.05 (50 images)",
    )
    assert verdict([50, 36], [30, 40], max_class_drop=0.08).promote, "a fall of just the bound is accepted"


def test_too_few_test_images_promote_nothing() -> None:
    found = verdict([50, 50], [20, 20], min_test_images=101)
    assert found.reasons == ("100 test images are fewer than retrain.min_test_images 101",)
    none = judge([], [], [], RetrainConfig(), known_to_champion=CLASSES)
    assert not none.promote
    assert none.num_images == 0


def test_small_classes_are_judged_together_as_one_image_of_them_says_nothing() -> None:
    truth = ["cat"] * 50 + ["emu"] * 5 + ["fox"] * 5
    champion = answers([20, 5, 5], truth)
    one_lost = judge(
        truth, answers([40, 5, 4], truth), champion, RetrainConfig(**SETTINGS), known_to_champion=("cat", "emu", "fox")
    )
    assert [change.name for change in one_lost.judged] == ["cat", SMALL]
    assert one_lost.judged[1].num_images == 10
    assert not one_lost.promote, "one of ten is more than a twentieth"
    assert [change.name for change in one_lost.classes] == ["cat", "emu", "fox"]
    exchanged = answers([40, 5, 4], truth)
    champion_too = answers([20, 4, 5], truth)
    assert judge(
        truth, exchanged, champion_too, RetrainConfig(**SETTINGS), known_to_champion=("cat", "emu", "fox")
    ).promote


def test_a_class_that_the_champion_does_not_know_counts_as_wrong_for_it() -> None:
    truth = ["cat"] * 50 + ["newt"] * 50
    found = judge(
        truth, answers([45, 40], truth), answers([45, 0], truth, wrong="dog"), RetrainConfig(**SETTINGS),
        known_to_champion=CLASSES,
    )  # fmt: skip
    assert found.promote
    newt = next(change for change in found.classes if change.name == "newt")
    assert newt.is_new
    assert newt.champion == 0.0
    assert not next(change for change in found.classes if change.name == "cat").is_new


def test_to_name_a_class_that_is_gone_is_wrong() -> None:
    found = judge(
        TRUTH, answers([50, 50]), answers([30, 50], wrong="ferret"), RetrainConfig(**SETTINGS),
        known_to_champion=(*CLASSES, "ferret"),
    )  # fmt: skip
    assert found.champion_accuracy == 0.8
    assert {change.name for change in found.classes} == {"cat", "dog"}
