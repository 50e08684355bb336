"""Accuracy over size of the catalogue's models, as in the EfficientNet paper (arXiv:1905.11946, figure 1).

    write_models_plot(models, "models.png")       # or .svg, or .html with the names under the pointer

The line joins the models that no smaller one beats (the Pareto front); of them as many are named as fit without
overlap.
"""

import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tlray.catalogue import ModelFacts
from tlray.errors import ConfigError

PALETTE = ("#3b82f6", "#f0803c", "#12a67c", "#c65bb0", "#8b7cf0", "#b5920f", "#2fb0c7", "#e05260")
OTHERS, FRONT = "#b8b8b8", "#202020"
FORMATS = (".png", ".svg", ".html")
# Where a name may end, in points from its model; above and to the left of the front there are no others.
PLACES = ((-5, 4), (-9, 13), (-13, 22))
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
PAGE = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n{svg}\n</html>\n'


def write_models_plot(models: Sequence[ModelFacts], path: str) -> None:
    """Draw those of `models` whose accuracy and size are known; ConfigError for another kind of file, or for none."""
    kind = Path(path).suffix.lower()
    if kind not in FORMATS:
        raise ConfigError(f"--plot {path}: give a file that ends in {', '.join(FORMATS)}")
    drawn = [facts for facts in models if facts.top1 is not None and facts.num_params]
    if not drawn:
        raise ConfigError(f"--plot {path}: of {len(models)} models none has a published accuracy")
    with rc_context(STYLE):
        figure = _figure(drawn)
        if kind == ".html":
            text = io.StringIO()
            figure.savefig(text, format="svg", bbox_inches="tight")
            svg = text.getvalue()
            svg = svg[svg.index("<svg") :]
            Path(path).write_text(PAGE.format(title=f"{len(drawn)} models", svg=_with_names(svg, drawn)))
        else:
            figure.savefig(path, dpi=160, bbox_inches="tight")


def pareto_front(models: Sequence[ModelFacts]) -> list[ModelFacts]:
    """Models that are more accurate than every other of their size or smaller, from small to large."""
    front: list[ModelFacts] = []
    for facts in sorted(models, key=lambda one: (one.num_params or 0, -(one.top1 or 0))):
        if not front or (facts.top1 or 0) > (front[-1].top1 or 0):
            front.append(facts)
    return front


def _figure(models: Sequence[ModelFacts]) -> Figure:
    figure = Figure(figsize=(10, 6.2))
    axes = figure.add_subplot()
    families = [family for family, _ in Counter(facts.family for facts in models).most_common(len(PALETTE))]
    colours = dict(zip(families, PALETTE, strict=False))
    others = [facts for facts in models if facts.family not in colours]
    for family, members in [(None, others), *((f, [m for m in models if m.family == f]) for f in families)]:
        if members:
            colour = OTHERS if family is None else colours[family]
            label = "other families" if family is None else family
            points = axes.scatter(*_places(members), s=16, color=colour, alpha=0.75, linewidths=0, label=label)
            points.set_gid(f"family-{label}")
    front = pareto_front(models)
    axes.plot(*_places(front), color=FRONT, linewidth=1, marker="o", markersize=4.5, markerfacecolor="none")
    axes.set_xscale("log")
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("ImageNet-1k top-1 accuracy as published (%)")
    axes.set_ylim(bottom=_floor(models))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color="#808080", alpha=0.2, linewidth=0.6)
    axes.set_title(f"{len(models)} sets of weights; the line joins those that no smaller one beats", loc="left")
    axes.legend(frameon=False, loc="lower right", fontsize=8, markerscale=1.6)
    _name(FigureCanvasAgg(figure), axes, front)
    return figure


def _places(models: Sequence[ModelFacts]) -> tuple[list[float], list[float]]:
    return [(facts.num_params or 0) / 1e6 for facts in models], [facts.top1 or 0 for facts in models]


def _floor(models: Sequence[ModelFacts]) -> float:
    """Lowest accuracy shown: a few test models far below everything else would press the rest together."""
    accuracies = sorted(facts.top1 or 0 for facts in models)
    return max(accuracies[0] - 1, accuracies[len(accuracies) // 50] - 8)


def _name(canvas: FigureCanvasAgg, axes: Axes, front: Sequence[ModelFacts]) -> None:
    """Names of the front's models, the most accurate first, each only where it covers no other name."""
    renderer = canvas.get_renderer()
    canvas.draw()
    legend = axes.get_legend()
    taken: list[Bbox] = [legend.get_window_extent(renderer)] if legend is not None else []
    frame = axes.get_window_extent(renderer)
    for facts in reversed(front):
        for place in PLACES:
            text = axes.annotate(
                facts.name,
                ((facts.num_params or 0) / 1e6, facts.top1 or 0),
                place,
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=7,
                color=FRONT,
            )
            box = text.get_window_extent(renderer).padded(1)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 + 14
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _with_names(svg: str, models: Sequence[ModelFacts]) -> str:
    """Each point of a family's group with its model's id as a title, which browsers show under the pointer."""
    families = {facts.family for facts in models}
    for group in [f"family-{family}" for family in families] + ["family-other families"]:
        start = svg.find(f'<g id="{group}">')
        if start < 0:
            continue
        label = group.removeprefix("family-")
        named = Counter(facts.family for facts in models)
        top = {family for family, _ in named.most_common(len(PALETTE))}
        members = [m for m in models if (m.family == label if label in top else m.family not in top)]
        end = svg.index("</g>\n  </g>", start) if "</g>\n  </g>" in svg[start:] else len(svg)
        body, position = svg[start:end], 0
        for facts in members:
            position = body.find("<use ", position)
            if position < 0:
                break
            close = body.index("/>", position)
            title = f"<title>{html.escape(facts.id)}: {facts.top1} %, {facts.num_params:,} parameters</title></use>"
            body = f"{body[:close]}>{title}{body[close + 2 :]}"
            position = close + len(title)
        svg = svg[:start] + body + svg[end:]
    return svg
