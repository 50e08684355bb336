"""The catalogue as a table for the terminal: as many columns as the width has room for, the most asked for first."""

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from tlray.catalogue import ModelFacts
from tlray.report.tables import plain_table

ID_WIDTH = 44  # columns that an id should have before others are shown; longer ones are folded
BINDS, ESTIMATED = "*", "≈"

# Heading, width, alignment, content; in the order in which they are given up from the end when there is no room.
COLUMNS: tuple[tuple[str, int, bool, Callable[[ModelFacts], str]], ...] = (
    ("top-1", 5, True, lambda facts: _figure(facts.top1, ".2f")),
    ("params", 6, True, lambda facts: _amount(facts.num_params)),
    ("GFLOPs", 6, True, lambda facts: _figure(facts.gflops, ".2f")),
    ("MB", 5, True, lambda facts: (ESTIMATED if facts.size_estimated else "") + _figure(facts.size_mb, ".0f")),
    ("px", 4, True, lambda facts: _figure(facts.input_size, "d")),
    ("licence", 14, False, lambda facts: (facts.licence or "") + (BINDS if facts.licence_binds else "")),
    ("trained on", 14, False, lambda facts: facts.trained_on or ""),
    ("blocks", 6, True, lambda facts: _figure(facts.num_blocks, "d")),
    ("width", 5, True, lambda facts: _figure(facts.feature_width, "d")),
    ("top-5", 5, True, lambda facts: _figure(facts.top5, ".2f")),
    ("family", 18, False, lambda facts: facts.family or ""),
    ("note", 40, False, lambda facts: facts.note or ""),
)


def models_table(models: Sequence[ModelFacts], width: int = 120) -> Table:
    """One row a set of weights, empty where nobody publishes a figure; readable from 80 columns on."""
    shown, left = [], width - ID_WIDTH
    for column in COLUMNS:
        left -= column[1] + 1
        if left < 0:
            break
        shown.append(column)
    table = plain_table(f"{len(models)} models")
    table.add_column("id", overflow="fold")
    for heading, columns, is_number, _ in shown:
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", min_width=columns)
    for facts in models:
        table.add_row(escape(facts.id), *(escape(content(facts)) for *_, content in shown))
    table.caption = escape("\n".join(_legend(models, {heading for heading, *_ in shown}))) or None
    table.caption_justify = "left"
    return table


def _legend(models: Sequence[ModelFacts], headings: set[str]) -> list[str]:
    """What the signs of the table mean, where they are in it."""
    lines = []
    if "MB" in headings and any(facts.size_estimated for facts in models):
        lines.append(f"{ESTIMATED} 4 bytes a parameter; the library publishes no size")
    if any(facts.licence_binds for facts in models):
        names = ", ".join(sorted({str(facts.licence) for facts in models if facts.licence_binds}))
        sign = f"{BINDS} " if "licence" in headings else ""
        lines.append(f"{sign}licences to be accepted by name (accept_licences): {names}")
    return lines


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _amount(value: int | None) -> str:
    """Parameters in three or four figures: 1.37M, 25.6M, 1.14G."""
    if value is None:
        return ""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.2f}{name}" if scaled < 10 else f"{scaled:.1f}{name}"
    return str(value)
