"""A ranking as a table for the terminal."""

from rich.markup import escape
from rich.table import Table

from tlray.ranking.result import RankedBackbone, Ranking
from tlray.ranking.scores import NAMES, SHARES


def ranking_table(ranking: Ranking) -> Table:
    """One row a backbone, best first; what goes on to the sweep is bold."""
    title = f"{len(ranking.rows)} backbones on {ranking.num_images} training images, {ranking.seconds:.0f} s"
    decided = "the mean place over all scores" if ranking.score == "mean_rank" else NAMES[ranking.score]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("backbone", overflow="fold")
    for key, name in NAMES.items():
        table.add_column(f"{name} %" if key in SHARES else name, justify="right")
    table.add_column("width", justify="right")
    table.add_column("images", justify="right")
    table.add_column("s", justify="right")
    for row in ranking.rows:
        scores = [shown_score(row, key) for key in NAMES]
        cells = [str(row.rank or ""), escape(row.backbone.id + _weights(row)), *scores]
        cells += [str(row.num_features or ""), str(row.prefix_images_computed), f"{row.seconds:.1f}"]
        table.add_row(*cells, style="bold" if row.chosen and not all(one.chosen for one in ranking.rows) else None)
    notes = [
        f"ranked by {decided}; higher is better in every column; images: computed for this, the others were stored"
    ]
    notes += [f"{row.backbone.id} could not be scored: {row.error}" for row in ranking.rows if row.error is not None]
    notes += [f"warning: {warning}" for warning in ranking.warnings]
    table.caption, table.caption_justify = escape("\n".join(notes)), "left"
    return table


def shown_score(row: RankedBackbone, key: str) -> str:
    value = row.scores.get(key)
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if key in SHARES else f"{value:.3f}"


def _weights(row: RankedBackbone) -> str:
    """Said only where it is not what one expects."""
    return " (random weights)" if row.backbone.weights == "none" else ""
