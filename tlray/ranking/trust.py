"""Which score to trust: how each one's order of the backbones agrees with what the sweep then found.

trust = agreement(ranking, found)      # found: backbone (id and weights) -> accuracy of its best trial
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tlray.ranking.correlation import spearman, weighted_tau
from tlray.ranking.result import Ranking
from tlray.ranking.scores import NAMES

LEAST = 3  # backbones: with two of them, every correlation is 1 or -1


@dataclass(frozen=True)
class Agreement:
    """One score's correlations with the accuracies found; None where they are not defined."""

    score: str  # one of scores.NAMES
    num_backbones: int  # that have the score and an accuracy
    weighted_tau: float | None  # Kendall's, weighted: in [-1, 1], exchanges near the top count more
    spearman: float | None  # in [-1, 1]


def agreement(ranking: Ranking, found: Mapping[tuple[str, str], float]) -> list[Agreement]:
    """One entry a score that some backbone has; `found` by (id, weights) as ranking.json has them."""
    entries = []
    for name in NAMES:
        pairs = [
            (score, found[row.backbone.id, row.backbone.weights])
            for row in ranking.rows
            if (score := row.scores.get(name)) is not None and (row.backbone.id, row.backbone.weights) in found
        ]
        if pairs:
            scores, accuracies = zip(*pairs, strict=True)
            enough = len(pairs) >= LEAST
            entries.append(
                Agreement(
                    name,
                    len(pairs),
                    weighted_tau(scores, accuracies) if enough else None,
                    spearman(scores, accuracies) if enough else None,
                )
            )
    return entries
