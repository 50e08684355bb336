"""What a ranking found: ranking.json of a run folder. Neither torch nor Ray here.

ranking = make_ranking(rows, config, ...);  save_ranking(ranking, run_uri)
ranking = load_ranking(run_uri)             # None where the run has none
config = shortlisted(config, ranking)       # the same with the chosen backbones only
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlray import storage
from tlray.config import BackboneConfig, RankingConfig, RunConfig
from tlray.errors import BackboneError
from tlray.ranking.scores import NAMES
from tlray.runs.folder import RANKING
from tlray.storage.sealed import read_document, write_document


class RankedBackbone(BaseModel):
    """One backbone's scores by the names of scores.NAMES; with a reason and without a rank where it has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: BackboneConfig
    rank: int | None = None  # 1-based, by the score that decides
    chosen: bool = False  # whether it goes on to the sweep
    scores: dict[str, float | None] = {}
    num_features: int = 0
    prefix_images_computed: int = 0  # for this ranking; the others were in the store
    seconds: float = 0.0  # reading the features and scoring them
    error: str | None = None


class Ranking(BaseModel):
    """All backbones, best first, those without scores last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: str  # which decided: one of scores.NAMES, or mean_rank
    num_images: int
    num_classes: int
    largest_class: float  # the largest class's share of the images: what a guess gets right
    seconds: float  # all of it, the activation pass included
    rows: tuple[RankedBackbone, ...]
    warnings: tuple[str, ...] = ()  # of the images, as in the manifest

    @property
    def chosen(self) -> tuple[RankedBackbone, ...]:
        return tuple(row for row in self.rows if row.chosen)

    @property
    def similarity(self) -> float | None:
        """How far the classes hold together in the best backbone's features: 0 a guess, 1 perfectly.

        Cohen's kappa of the best linear probe: (accuracy - guess) / (1 - guess), clipped to [0, 1].
        """
        accuracies = [row.scores["linear_probe"] for row in self.rows if row.rank is not None]
        best = max((accuracy for accuracy in accuracies if accuracy is not None), default=None)
        if best is None or self.largest_class >= 1:
            return None
        return min(1.0, max(0.0, (best - self.largest_class) / (1 - self.largest_class)))


def make_ranking(
    rows: Sequence[RankedBackbone], settings: RankingConfig, labels: np.ndarray, seconds: float
) -> Ranking:
    """Give rows their ranks and mark the first `settings.shortlist` of them; labels (N,) of the ranked images.

    BackboneError with the reasons when no backbone could be scored.
    """
    scored = [row for row in rows if row.error is None]
    if not scored:
        raise BackboneError("; ".join(dict.fromkeys(f"{row.backbone.id}: {row.error}" for row in rows)))
    merits = _merits([row.scores for row in scored], settings.score)
    order = sorted(range(len(scored)), key=lambda place: -merits[place])
    num_chosen = len(rows) if settings.shortlist is None else settings.shortlist
    ranked = [
        scored[place].model_copy(update={"rank": rank, "chosen": rank <= num_chosen})
        for rank, place in enumerate(order, start=1)
    ]
    left = num_chosen - len(ranked)
    without = [row for row in rows if row.error is not None]
    _, counts = np.unique(labels, return_counts=True)
    return Ranking(
        score=settings.score,
        num_images=len(labels),
        num_classes=len(counts),
        largest_class=float(counts.max() / counts.sum()),
        seconds=seconds,
        rows=(*ranked, *(row.model_copy(update={"chosen": place < left}) for place, row in enumerate(without))),
    )


def wants_shortlist(config: RunConfig) -> bool:
    """Whether some of the configuration's backbones are left out of the sweep."""
    return config.ranking.shortlist is not None and config.ranking.shortlist < len(config.chosen_backbones)


def shortlisted(config: RunConfig, ranking: Ranking) -> RunConfig:
    """The configuration with the chosen backbones only, in its own order; the baseline is none of them and stays."""
    chosen = {row.backbone.model_dump_json() for row in ranking.chosen}
    kept = tuple(backbone for backbone in config.chosen_backbones if backbone.model_dump_json() in chosen)
    return config.model_copy(update={"backbones": kept})


def describe_choice(ranking: Ranking) -> str:
    """What goes on to the sweep and why, in one line."""
    by = "the mean of its ranks" if ranking.score == "mean_rank" else NAMES[ranking.score]
    kept = ", ".join(f"{row.backbone.id}{_value(row, ranking.score)}" for row in ranking.chosen)
    left_out = ", ".join(f"{row.backbone.id}{_value(row, ranking.score)}" for row in ranking.rows if not row.chosen)
    rest = f"; left out: {left_out}" if left_out else ""
    return f"by {by} on {ranking.num_images} training images the sweep goes on with {kept}{rest}"


def save_ranking(ranking: Ranking, run_uri: str) -> None:
    write_document(storage.join(run_uri, RANKING), ranking.model_dump(mode="json"))


def load_ranking(run_uri: str) -> Ranking | None:
    """None where the run has none; DamagedError."""
    try:
        document = read_document(storage.join(run_uri, RANKING), "restore it from a copy, or rank again in a new run")
    except storage.NotFoundError:
        return None
    return Ranking.model_validate(document)


def _merits(scores: Sequence[dict[str, float | None]], name: str) -> list[float]:
    """What rows are sorted by, higher is better: the score, or minus the mean place over the scores that all have."""
    if name != "mean_rank":
        return [value if (value := row.get(name)) is not None else -np.inf for row in scores]
    shared = [key for key in NAMES if all(row.get(key) is not None for row in scores)]
    columns = np.array([[row[key] for key in shared] for row in scores], dtype=np.float64)  # (rows, scores)
    better = (columns[None] > columns[:, None]).sum(axis=1) + (columns[None] == columns[:, None]).sum(axis=1) / 2
    return [-float(place) for place in better.mean(axis=1)]


def _value(row: RankedBackbone, score: str) -> str:
    if row.error is not None:
        return f" ({row.error})"
    value = row.scores.get(score)
    return f" (rank {row.rank})" if value is None else f" ({value:.3f})"
