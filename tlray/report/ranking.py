"""The scores that chose the backbones beside what the sweep then found, for the terminal and for report.html.

found = read_found(run_uri, leaderboard)      # None where the run has no ranking.json
console.print(agreement_table(found))
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from tlray.ranking.result import RankedBackbone, Ranking, describe_choice, load_ranking
from tlray.ranking.scores import NAMES
from tlray.ranking.tables import shown_score
from tlray.ranking.trust import LEAST, Agreement, agreement
from tlray.runs.results import Leaderboard, TrialResult


@dataclass(frozen=True)
class Found:
    """A ranking and what came of it."""

    ranking: Ranking
    accuracies: dict[tuple[str, str], float]  # test accuracy of each backbone's best trial, by id and weights
    agreements: list[Agreement]

    @property
    def choice(self) -> str:
        return describe_choice(self.ranking)

    def accuracy(self, row: RankedBackbone) -> float | None:
        return self.accuracies.get((row.backbone.id, row.backbone.weights))

    def cells(self, row: RankedBackbone) -> list[str]:
        return [shown_score(row, score.score) for score in self.agreements]


def read_found(run_uri: str, leaderboard: Leaderboard) -> Found | None:
    """What the run's ranking.json says, and how it compares with the leaderboard; None where it has none."""
    ranking = load_ranking(run_uri)
    if ranking is None:
        return None
    accuracies = best_accuracies(leaderboard.rows)
    return Found(ranking, accuracies, agreement(ranking, accuracies))


def best_accuracies(rows: Sequence[TrialResult]) -> dict[tuple[str, str], float]:
    """By (backbone id, weights): the test accuracy of the trial with the best validation accuracy.

    The baseline and trials from scratch are left out: they use nothing of the weights that were ranked.
    """
    best: dict[tuple[str, str], TrialResult] = {}
    for row in rows:
        if row.status == "failed" or row.is_baseline or row.strategy == "scratch":
            continue
        before = best.get((row.backbone, row.weights))
        if before is None or (row.val_accuracy or 0) > (before.val_accuracy or 0):
            best[row.backbone, row.weights] = row
    return {key: row.test_accuracy or 0.0 for key, row in best.items()}


def agreement_table(found: Found) -> Table:
    """A row for each score: how its order agrees with the backbones' best test accuracies."""
    table = Table(title="which score to trust", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("score")
    for column in ("backbones", "weighted tau", "Spearman"):
        table.add_column(column, justify="right")
    for one in found.agreements:
        table.add_row(NAMES[one.score], str(one.num_backbones), signed(one.weighted_tau), signed(one.spearman))
    table.caption = f"rank correlation with each backbone's test accuracy, 1 the same order; needs {LEAST} backbones"
    table.caption_justify = "left"
    return table


def signed(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:+.2f}"
