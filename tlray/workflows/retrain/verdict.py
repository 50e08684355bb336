"""Champion or challenger: both asked about the same images, and what must hold for a promotion.

    verdict = judge(labels, challenger, champion, settings, known_to_champion=champion.classes)
    verdict.promote, verdict.reasons

The challenger is promoted when it is better with the stated confidence (McNemar's exact test, `paired`) and no class's
recall falls by more than the stated bound. A class with few test images says nothing by itself, one image of ten being
ten points: all such classes are judged together as one.

Classes are compared by name. One that the champion does not know it cannot name, so its images count as wrong for the
champion: to learn it is a gain. One that is gone from the data has no images any more, and naming it is wrong.
"""

from collections.abc import Collection, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlray.config import RetrainConfig
from tlray.runs.results import CONFIDENCE, paired_gain
from tlray.workflows.retrain.paired import mcnemar

SMALL = "(small classes)"
LARGEST_NUM_NAMED = 5


class ClassChange(BaseModel):
    """One class's images, and the share of them that each model gets right."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_images: int
    challenger: float
    champion: float
    is_new: bool  # the champion does not know it

    @property
    def drop(self) -> float:
        return self.champion - self.challenger


class Verdict(BaseModel):
    """What the comparison came to. Accuracies and differences are fractions."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reasons: tuple[str, ...]  # for the promotion, or against it
    num_images: int
    challenger_accuracy: float
    champion_accuracy: float
    difference: float
    difference_low: float  # paired bootstrap
    difference_high: float
    interval: float = CONFIDENCE  # that low and high are of
    only_challenger: int  # images that it alone gets right
    only_champion: int
    p_value: float  # McNemar's exact test, one-sided
    classes: tuple[ClassChange, ...]
    judged: tuple[ClassChange, ...]  # as the bound was applied: small classes together


def judge(
    labels: Sequence[str],
    challenger: Sequence[str],
    champion: Sequence[str],
    settings: RetrainConfig,
    *,
    known_to_champion: Collection[str],
) -> Verdict:
    """Names of classes, one for each image: the truth, and what each model says."""
    truth, one, other = (np.array(names, dtype=object) for names in (labels, challenger, champion))
    right, before = one == truth, other == truth
    test = mcnemar(right, before)
    difference, low, high = paired_gain(right, before, seed=0) if len(truth) else (0.0, 0.0, 0.0)
    classes = tuple(
        _change(name, truth == name, right, before, is_new=name not in known_to_champion)
        for name in sorted(set(labels))
    )
    judged = _judged(classes, truth, right, before, settings.min_class_images)
    against = [
        *_too_few(test.num_images, settings),
        *_not_better(test.p_value, settings.confidence),
        *_fallen(judged, settings.max_class_drop),
    ]
    return Verdict(
        promote=not against,
        reasons=tuple(against) or (f"better with a confidence of {settings.confidence:.4g} (p = {test.p_value:.2g})",),
        num_images=test.num_images,
        challenger_accuracy=_share(right),
        champion_accuracy=_share(before),
        difference=difference,
        difference_low=low,
        difference_high=high,
        only_challenger=test.only_challenger,
        only_champion=test.only_champion,
        p_value=test.p_value,
        classes=classes,
        judged=judged,
    )


def _judged(
    classes: Sequence[ClassChange], truth: np.ndarray, right: np.ndarray, before: np.ndarray, least: int
) -> tuple[ClassChange, ...]:
    """Classes with `least` images or more by themselves, the others as one."""
    small = [change.name for change in classes if change.num_images < least]
    large = tuple(change for change in classes if change.num_images >= least)
    if not small:
        return large
    return (*large, _change(SMALL, np.isin(truth.astype(str), small), right, before, is_new=False))


def _change(name: str, where: np.ndarray, right: np.ndarray, before: np.ndarray, *, is_new: bool) -> ClassChange:
    return ClassChange(
        name=name,
        num_images=int(where.sum()),
        challenger=_share(right[where]),
        champion=_share(before[where]),
        is_new=is_new,
    )


def _share(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else 0.0


def _too_few(num_images: int, settings: RetrainConfig) -> list[str]:
    if num_images >= settings.min_test_images:
        return []
    return [f"{num_images} test images are fewer than retrain.min_test_images {settings.min_test_images}"]


def _not_better(p_value: float, confidence: float) -> list[str]:
    if p_value <= 1 - confidence:
        return []
    return [f"not better with a confidence of {confidence:.4g} (p = {p_value:.2g}, {1 - confidence:.2g} at most)"]


def _fallen(judged: Sequence[ClassChange], bound: float) -> list[str]:
    fallen = sorted((change for change in judged if change.drop > bound + 1e-12), key=lambda change: -change.drop)
    return [
        f"recall of {change.name} falls from {100 * change.champion:.1f} to {100 * change.challenger:.1f} %, by more "
        f"than retrain.max_class_drop {bound:g} ({change.num_images} images)"
        for change in fallen[:LARGEST_NUM_NAMED]
    ]
