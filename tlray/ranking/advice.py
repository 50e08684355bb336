"""`strategies: auto`: which freeze strategies enter the sweep, from what is known of the data before anything trains.

    advice = advise(Facts(num_train=244, num_classes=2, smallest_class=121, similarity=0.93))
    advice.strategies, advice.reason

The rules are the four quadrants of CS231n's notes on transfer learning (Karpathy et al., Stanford): little and similar
data, a linear classifier on the features; little and different, on earlier activations; much and similar, fine-tune
through the network; much and different, fine-tune everything, from scratch too. Three findings refine them. A linear
probe of good features costs next to nothing and is what every other strategy has to beat, so it always enters
(Kornblith, Shlens, Le: Do Better ImageNet Models Transfer Better?, CVPR 2019). Fine-tuning distorts good features while
the head is still random; training the head first and then the blocks avoids that (Kumar et al.: Fine-Tuning Can Distort
Pretrained Features and Underperform Out-of-Distribution, ICLR 2022), which is `gradual`. And pre-trained features
transfer the less the deeper the layer and the more distant the task (Yosinski et al., NeurIPS 2014), so what trains
under `partial` grows with the distance.

None of them gives numbers for "little" or "similar": the thresholds are tlray's, and stand below.
"""

from dataclasses import dataclass

import numpy as np

from tlray.config import StrategyConfig

FEW_IMAGES, FEW_PER_CLASS = 2_000, 50  # with less of either, training the whole network mostly overfits
MANY_IMAGES, MANY_PER_CLASS = 20_000, 500  # with both, it can learn what its weights do not bring along
NEAR, FAR = 0.8, 0.5  # similarity: Cohen's kappa of a linear probe on the features

PROBE = StrategyConfig(strategy="linear_probe")
LAST_BLOCKS = StrategyConfig(strategy="partial", frozen_fraction=0.8)
HALF = StrategyConfig(strategy="partial", frozen_fraction=0.5)
HEAD_FIRST = StrategyConfig(strategy="gradual")
FULL = StrategyConfig(strategy="full")
SCRATCH = StrategyConfig(strategy="scratch")

RULES: dict[tuple[str, str], tuple[tuple[StrategyConfig, ...], str]] = {
    ("few", "near"): (
        (PROBE, LAST_BLOCKS),
        "training more than the last blocks would overfit and distort good features",
    ),
    ("few", "between"): ((PROBE, LAST_BLOCKS, HEAD_FIRST), "the last blocks may adapt, the head before them"),
    ("few", "far"): ((PROBE, HALF, HEAD_FIRST), "later features do not fit these images: earlier cuts, the head first"),
    ("few", "unknown"): ((PROBE, LAST_BLOCKS, HEAD_FIRST), "too few to train everything at once"),
    ("some", "near"): (
        (PROBE, LAST_BLOCKS, HEAD_FIRST),
        "good features are kept by training the head before the blocks",
    ),
    ("some", "between"): ((PROBE, HALF, HEAD_FIRST, FULL), "enough images to adapt the features, by how much is open"),
    ("some", "far"): (
        (PROBE, HALF, HEAD_FIRST, FULL),
        "the features have to change: half of the blocks or all of them",
    ),
    ("some", "unknown"): ((PROBE, HALF, HEAD_FIRST, FULL), "enough images to adapt the features, by how much is open"),
    ("many", "near"): ((PROBE, HEAD_FIRST, FULL), "enough images to fine-tune everything"),
    ("many", "between"): ((PROBE, HEAD_FIRST, FULL), "enough images to fine-tune everything"),
    ("many", "far"): ((PROBE, HEAD_FIRST, FULL, SCRATCH), "so many and so different that random weights may catch up"),
    ("many", "unknown"): ((PROBE, HEAD_FIRST, FULL), "enough images to fine-tune everything"),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the advice depends on."""

    num_train: int  # images
    num_classes: int
    smallest_class: int  # its training images
    similarity: float | None  # Ranking.similarity, in [0, 1]; None before anything was ranked


@dataclass(frozen=True)
class Advice:
    """Strategies in the order of what they train, and why these."""

    strategies: tuple[StrategyConfig, ...]
    reason: str


def advise(facts: Facts) -> Advice:
    """The strategies that are worth trying."""
    amount, distance = _amount(facts), _distance(facts.similarity)
    strategies, why = RULES[amount, distance]
    names = ", ".join(strategy.label for strategy in strategies)
    return Advice(
        strategies, f"strategies: auto is {names}: {_size(facts, amount)}, {_likeness(facts, distance)}: {why}"
    )


def facts_of(labels: np.ndarray, num_classes: int, similarity: float | None) -> Facts:
    """labels (N,) int: of the training images, below num_classes."""
    counts = np.bincount(labels, minlength=num_classes)
    smallest = int(counts[counts > 0].min(initial=len(labels)))
    return Facts(num_train=len(labels), num_classes=num_classes, smallest_class=smallest, similarity=similarity)


def _amount(facts: Facts) -> str:
    if facts.num_train < FEW_IMAGES or facts.smallest_class < FEW_PER_CLASS:
        return "few"
    per_class = facts.num_train / facts.num_classes
    return "many" if facts.num_train >= MANY_IMAGES and per_class >= MANY_PER_CLASS else "some"


def _distance(similarity: float | None) -> str:
    if similarity is None:
        return "unknown"
    return "near" if similarity >= NEAR else "far" if similarity < FAR else "between"


def _size(facts: Facts, amount: str) -> str:
    return (
        f"{amount} images ({facts.num_train} of {facts.num_classes} classes, the smallest has {facts.smallest_class})"
    )


def _likeness(facts: Facts, distance: str) -> str:
    if facts.similarity is None:
        return "similarity to the source unknown (`tlray run` measures it, `tlray plan` goes by size alone)"
    held = {"near": "keep the classes apart well", "between": "keep the classes apart partly", "far": "mix the classes"}
    return f"the best backbone's features {held[distance]} (similarity {facts.similarity:.2f} of 1)"
