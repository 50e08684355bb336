"""The report's figures as SVG text that stands in the page itself: learning curves, gains, accuracy over cost.

Text and axes are drawn in the page's own text colour, so that one file reads well on light and dark backgrounds.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from tlray.report.words import count
from tlray.runs.results import LeaderboardRow, TrialResult

INK = "#010203"  # stands for the page's text colour until the SVG is put into the page
PALETTE = ("#3b82f6", "#f0803c", "#12a67c", "#c65bb0", "#8b7cf0", "#b5920f", "#2fb0c7", "#e05260")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
BASELINE, BASELINE_DASH = "baseline", (0, (1, 2.4))
LEGEND_COLUMNS = 4
MINOR_LABELS_BELOW = 30  # ratio of a logarithmic axis' ends up to which 2 and 5 are labelled too
LARGEST_NUM_GAINS = 40
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$5"
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


class Looks:
    """One colour per backbone and one dash and marker per strategy; with a single backbone, colours tell strategies."""

    def __init__(self, results: Sequence[TrialResult]) -> None:
        compared = [result for result in results if not result.is_baseline]
        backbones = list(dict.fromkeys(sorted(result.backbone for result in compared)))
        strategies = list(dict.fromkeys(sorted(result.strategy for result in compared)))
        self.colour_is_strategy = len(backbones) <= 1
        coloured, dashed = (strategies, backbones) if self.colour_is_strategy else (backbones, strategies)
        self.colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(coloured)}
        self.dashes = {name: DASHES[i % len(DASHES)] for i, name in enumerate(dashed)}
        self.markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dashed)}

    def line(self, result: TrialResult) -> dict[str, Any]:
        if result.is_baseline:
            return {"color": INK, "linestyle": BASELINE_DASH}
        colour, dash = self._keys(result)
        return {"color": self.colours[colour], "linestyle": self.dashes[dash]}

    def point(self, result: TrialResult) -> dict[str, Any]:
        if result.is_baseline:
            return {"color": INK, "marker": "X"}
        colour, dash = self._keys(result)
        return {"color": self.colours[colour], "marker": self.markers[dash]}

    def handles(self, results: Sequence[TrialResult], *, points: bool) -> list[Line2D]:
        """Legend entries: the colours, then the dashes or markers where there is more than one."""
        entries = [
            Line2D(
                [], [], color=colour, marker="o" if points else "", linestyle="" if points else "-", label=_short(name)
            )
            for name, colour in self.colours.items()
        ]
        if len(self.dashes) > 1:
            for name in self.dashes:
                look = {"marker": self.markers[name], "linestyle": ""} if points else {"linestyle": self.dashes[name]}
                entries.append(Line2D([], [], color=INK, label=_short(name), **look))
        baseline = next((result for result in results if result.is_baseline), None)
        if baseline is not None:
            look = {"marker": "X", "linestyle": ""} if points else {"linestyle": BASELINE_DASH}
            entries.append(Line2D([], [], color=INK, label=BASELINE, **look))
        return entries

    def _keys(self, result: TrialResult) -> tuple[str, str]:
        pair = (result.strategy, result.backbone)
        return pair if self.colour_is_strategy else pair[::-1]


def learning_curves(
    results: Sequence[TrialResult], histories: Mapping[str, Sequence[Mapping[str, Any]]], champion: str | None
) -> str:
    """Validation accuracy by epoch. `histories`: trial id -> rows of history.jsonl; the champion's line is thicker."""
    looks = Looks(results)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for result in results:
            rows = histories.get(result.trial_id, ())
            is_champion = result.trial_id == champion
            axes.plot(
                [row["epoch"] for row in rows],
                [row["val_accuracy"] for row in rows],
                **looks.line(result),
                linewidth=3.0 if is_champion else 2.0 if result.is_baseline else 1.4,
                alpha=1.0 if is_champion or result.is_baseline else 0.75,
                marker="o" if len(rows) == 1 else None,
                markersize=4,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _legend(figure, looks.handles(results, points=False))

    return _svg("Validation accuracy by epoch", (9.6, 4.2), draw)


def gains(rows: Sequence[LeaderboardRow]) -> str:
    """Gain in test accuracy over the baseline with its interval, best trial on top; the first 40 trials."""
    shown = [row for row in rows if row.gain is not None][:LARGEST_NUM_GAINS]
    looks = Looks(rows)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1.2, linestyle=BASELINE_DASH)
        for place, row in enumerate(shown):
            assert row.gain is not None
            assert row.gain_low is not None
            assert row.gain_high is not None
            gain, low, high = 100 * row.gain, 100 * row.gain_low, 100 * row.gain_high
            look = looks.point(row)
            axes.plot([low, high], [place, place], color=look["color"], linewidth=2, solid_capstyle="round")
            axes.plot([gain], [place], **look, markersize=6, linestyle="")
        axes.set_yticks(range(len(shown)), [row.trial_id for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("gain over the baseline, points of test accuracy (95 % interval)")
        _legend(figure, looks.handles([row for row in rows if not row.is_baseline], points=True))

    return _svg("Gain over the baseline with its confidence interval", (9.6, 1.6 + 0.26 * len(shown)), draw)


def accuracy_over_cost(rows: Sequence[LeaderboardRow]) -> str:
    """Test accuracy over the parameters that train, and over the seconds that training took."""
    looks = Looks(rows)
    scored = [row for row in rows if row.test_accuracy is not None]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        _scatter(left, scored, looks, "trained parameters", lambda row: row.num_trainable_params)
        _scatter(right, scored, looks, "seconds", lambda row: row.seconds)
        left.set_ylabel("test accuracy")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _legend(figure, looks.handles(rows, points=True))

    return _svg("Test accuracy over trained parameters and over training time", (9.6, 3.9), draw)


def _scatter(
    axes: Axes,
    rows: Sequence[LeaderboardRow],
    looks: Looks,
    label: str,
    cost: Callable[[LeaderboardRow], float | None],
) -> None:
    for row in rows:
        value = cost(row)
        if value and row.test_accuracy is not None:
            axes.plot([value], [row.test_accuracy], **looks.point(row), markersize=6.5, linestyle="", alpha=0.85)
    axes.set_xscale("log")
    # the default labels are powers in mathematical type, which the style has switched off
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    low, high = axes.get_xlim()
    between = "25" if high < MINOR_LABELS_BELOW * low else ""
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: count(value) if f"{value:e}"[0] in between else ""))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.set_xlabel(label)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    if handles:
        figure.legend(handles=list(handles), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9)


def _short(name: str) -> str:
    """A backbone without its library."""
    return name.rpartition("/")[2]


def _svg(title: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Run `draw` on a new figure -> an <svg> element with `title` for screen readers."""
    salt = re.sub(r"\W+", "-", title)  # keeps the ids of several figures in one page apart, and equal over runs
    with rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
