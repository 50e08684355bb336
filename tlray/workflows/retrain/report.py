"""A retraining as Markdown for a change log and as one HTML file that needs no network, in the look of a run's report.

report_uri = write_reports(record, champion_number)            # <run>/retrain.md and <run>/retrain.html
"""

import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlray import __version__, storage
from tlray.process.printable import code, markdown
from tlray.report.html import without_controls
from tlray.report.words import duration, interval, percent, points
from tlray.workflows.retrain.record import Record

MARKDOWN, HTML = "retrain.md", "retrain.html"
HERE = Path(__file__).parent
LARGEST_TABLE = 50  # classes; of more, those that changed most
FAR_APART = 0.7  # AUC from which the new images are said to differ
NOT_BY_CHANCE = 0.05  # p-value of the energy distance


def write_reports(record: Record, number: int) -> str:
    """`number`: of the champion that there is now -> the location of the HTML file."""
    for name in (MARKDOWN, HTML):
        storage.write_text(storage.join(record.run, name), render(name, record, number))
    return storage.join(record.run, HTML)


def render(name: str, record: Record, number: int) -> str:
    """One of the two files as text."""
    environment = Environment(
        loader=FileSystemLoader([HERE, HERE.parent.parent / "report"]),
        undefined=StrictUndefined,
        autoescape=name == HTML,
        finalize=without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "points": points, "duration": duration, "cell": markdown, "code": code}
    environment.globals |= {"interval": interval}
    drift = record.drift
    return environment.get_template(f"{name}.j2").render(
        record=record,
        number=number,
        title=_title(record, number),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.time)),
        classes=_shown_classes(record),
        growth=_growth_lines(record),
        drift=drift if not isinstance(drift, str) else None,
        no_drift=drift if isinstance(drift, str) else "there was nothing to compare with",
        reading=_reading(record),
        version=__version__,
    )


def summary_line(record: Record, number: int) -> str:
    """What came of it, in one line."""
    verdict = record.verdict
    if verdict is None:
        return f"{_title(record, number)}: {record.challenger.export}"
    scores = (
        f"test accuracy {percent(verdict.champion_accuracy)} -> {percent(verdict.challenger_accuracy)} % on "
        f"{verdict.num_images} images"
    )
    return f"{_title(record, number)}: {'; '.join(verdict.reasons)}; {scores}"


def _title(record: Record, number: int) -> str:
    if record.promoted:
        return f"champion {number} promoted"
    return f"challenger refused, champion {number} stays"


def _shown_classes(record: Record) -> list[Any]:
    if record.verdict is None:
        return []
    changed = sorted(record.verdict.classes, key=lambda change: -abs(change.drop))
    shown = {change.name for change in changed[:LARGEST_TABLE]}
    return [change for change in record.verdict.classes if change.name in shown]


def _growth_lines(record: Record) -> list[str]:
    growth = record.growth
    if growth is None:
        return ["what the champion comes from is not known, so neither is what is new"] if record.champion else []
    new = ", ".join(
        f"{growth.new_by_split[split]} {split}" for split in ("train", "val", "test") if split in growth.new_by_split
    )
    lines = [f"{growth.num_new} of {growth.num_images} images are new{f' ({new})' if new else ''}"]
    lines += [f"{growth.num_gone} gone since the champion"] if growth.num_gone else []
    lines += [f"{growth.num_relabelled} of another class than before"] if growth.num_relabelled else []
    if growth.new_classes:
        names = ", ".join(growth.new_classes)
        lines.append(f"new classes: {names}; the champion cannot name them, so their images count as wrong for it")
    if growth.gone_classes:
        lines.append(f"classes that are gone: {', '.join(growth.gone_classes)}; to name one is wrong for either model")
    if record.left_out:
        lines.append(f"{record.left_out} test images are left out, as one of the two models has learned from them")
    return lines


def _reading(record: Record) -> str:
    """What the numbers of the drift say together."""
    drift = record.drift
    if drift is None or isinstance(drift, str):
        return ""
    differ = drift.energy_p_value <= NOT_BY_CHANCE
    if differ and drift.auc >= FAR_APART:
        text = "The new images differ from the old ones clearly."
    elif differ:
        text = "The new images differ from the old ones a little, more than by chance."
    else:
        text = "No difference between the new and the old images that could not be chance."
    if drift.new_disagreement is not None and drift.new_disagreement > 2 * drift.old_disagreement + 0.1:
        text += " Their labels often disagree with their neighbours': look for wrong labels."
    return text
