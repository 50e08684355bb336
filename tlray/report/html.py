"""report.html: the whole run in one file that needs neither a network nor JavaScript.

uri = write_report("runs/birds/20260101-120000-ab12")     # local or s3://
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tlray import __version__, storage
from tlray.process.printable import printable
from tlray.ranking.scores import NAMES
from tlray.report import plots
from tlray.report.content import RunContent, read_run
from tlray.report.ranking import signed
from tlray.report.words import count, duration, interval, percent, points, shared_params, varying_params
from tlray.runs.results import LeaderboardRow, TrialResult

TEMPLATE = "report.html.j2"
LARGEST_MATRIX = 30  # classes up to which the confusion matrix is shown whole
NUM_CONFUSIONS = 15
NUM_BAD_SHOWN = 100


def write_report(run_uri: str) -> str:
    """Write report.html into the run folder as the run stands now -> its location."""
    content = read_run(run_uri)
    uri = storage.join(content.uri, "report.html")
    storage.write_text(uri, render(content))
    return uri


def render(content: RunContent) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "duration": duration,
        "count": count,
        "value": _value,
        "backbone": _without_library,
    }
    environment.globals |= {"interval": interval, "score_names": NAMES, "signed": signed}
    board = content.leaderboard
    return environment.get_template(TEMPLATE).render(
        run=content,
        board=board,
        champion=board.champion,
        baseline=board.baseline,
        varying=varying_params(board.rows),
        shared=shared_params(board.rows),
        figures=_figures(content),
        confusions=content.confusion.largest_errors(NUM_CONFUSIONS) if content.confusion is not None else [],
        largest_matrix=LARGEST_MATRIX,
        bad=content.manifest.bad[:NUM_BAD_SHOWN],
        num_failed=sum(row.status == "failed" for row in board.rows),
        training_seconds=sum(row.seconds for row in board.rows),
        widest_gain=_widest_gain(board.rows),
        version=__version__,
    )


def _figures(content: RunContent) -> list[tuple[str, Markup, str]]:
    """(title, SVG, caption) of every figure for which there is something to draw."""
    rows = content.leaderboard.rows
    drawn: list[TrialResult] = [row for row in rows if row.trial_id in content.histories]
    champion = content.leaderboard.champion
    figures: list[tuple[str, str, str]] = []
    if drawn:
        svg = plots.learning_curves(drawn, content.histories, champion.trial_id if champion is not None else None)
        figures.append(
            ("Learning curves", svg, "Validation accuracy after each epoch; the thick line is the champion.")
        )
    if any(row.gain is not None for row in rows):
        caption = "An interval that does not touch zero is a gain that these test images can tell from chance."
        num_gains = sum(row.gain is not None for row in rows)
        if num_gains > plots.LARGEST_NUM_GAINS:
            caption += f" The best {plots.LARGEST_NUM_GAINS} of {num_gains} trials."
        figures.append(("Gain over the baseline", plots.gains(rows), caption))
    if any(row.rank is not None for row in rows):
        caption = "Left: parameters that were trained. Right: seconds that training took. Both axes are logarithmic."
        figures.append(("What accuracy costs", plots.accuracy_over_cost(rows), caption))
    # the SVG is ours; what it holds of the user's has been escaped by matplotlib
    return [(title, Markup(svg), caption) for title, svg, caption in figures]


def _widest_gain(rows: Sequence[LeaderboardRow]) -> float:
    """Largest gain or loss, for the scale of the bars in the table; 1 where there is none."""
    return max((abs(row.gain) for row in rows if row.gain), default=1.0)


def without_controls(value: Any) -> Any:
    """What a template shows: text has no characters that a browser or a terminal would obey."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_library(backbone: str) -> str:
    return backbone.rpartition("/")[2]
