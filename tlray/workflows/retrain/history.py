"""Champions as a table for the terminal."""

import time
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from tlray.report.tables import plain_table
from tlray.report.words import percent
from tlray.runs.champion import Champion


def history_table(champions: Sequence[Champion]) -> Table:
    """One row each, in order; the last is the champion of now. Test accuracy is what its own run has measured."""
    table = plain_table("champions")
    table.add_column("#", justify="right")
    for column in ("since (UTC)", "model", "test %", "why"):
        table.add_column(column, overflow="fold")
    table.add_column("export", overflow="fold")
    for champion in champions:
        row = (
            str(champion.number),
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(champion.promoted)),
            f"{champion.backbone}, {champion.strategy}",
            percent(champion.metrics.get("test_accuracy")),
            champion.reason,
            champion.export,
        )
        table.add_row(*map(escape, row))
    return table
