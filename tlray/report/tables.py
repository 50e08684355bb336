"""Tables for the terminal: the leaderboard (fits 100 columns), an evaluation."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlray.report.words import ORDER, count, duration, interval, percent, points, varying_params
from tlray.runs.combined_rows import EnsembleRow, RefitRow
from tlray.runs.results import Evaluation, Leaderboard, LeaderboardRow

LARGEST_CONFUSION = 10  # classes up to which an evaluation shows its confusion matrix


def leaderboard_table(leaderboard: Leaderboard) -> Table:
    """One row a trial, best first; accuracies in percent, the gain over the baseline in points. Failures are below."""
    table = plain_table("leaderboard")
    table.add_column("#", justify="right")
    table.add_column("trial", overflow="fold")
    table.add_column("searched", overflow="fold")
    for column in ("val %", "test %", "gain over baseline", "epochs", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    varying = varying_params(leaderboard.rows)
    champion = leaderboard.champion
    for row in leaderboard.rows:
        is_champion = champion is not None and row.trial_id == champion.trial_id
        table.add_row(*_leaderboard_cells(row, varying), style="bold" if is_champion else None)
    notes = []
    if leaderboard.refit is not None:
        table.add_row(*_combined_cells("=", leaderboard.refit, None))
        notes.append(_refit_note(leaderboard.refit))
    if leaderboard.ensemble is not None:
        table.add_row(*_combined_cells("+", leaderboard.ensemble, leaderboard.ensemble.val_accuracy))
        notes.append(_ensemble_note(leaderboard.ensemble))
    notes += [f"{row.trial_id} failed: {row.error}" for row in leaderboard.rows if row.status == "failed"]
    if leaderboard.no_gain_reason:
        notes.append(f"no gains: {leaderboard.no_gain_reason}")
    if any(row.gain is not None for row in leaderboard.rows):
        notes.append(
            f"gain in points of test accuracy with its {leaderboard.confidence:.0%} interval, "
            f"{leaderboard.num_test_images} test images"
        )
    if leaderboard.is_ordered_by_loss:
        notes.append(ORDER)
    if any(row.status == "stopped" for row in leaderboard.rows):
        notes.append("* stopped early by the scheduler")
    notes += [f"warning: {warning}" for warning in leaderboard.warnings]
    table.caption = escape("\n".join(notes)) or None
    table.caption_justify = "left"
    return table


def _leaderboard_cells(row: LeaderboardRow, varying: Sequence[str]) -> list[str]:
    params = " ".join(f"{key}={_short(row.params[key])}" for key in varying if key in row.params)
    if row.status == "failed":
        return ["", escape(row.trial_id), escape(params), "", "failed", "", str(row.epochs), duration(row.seconds)]
    gain = "baseline" if row.is_baseline else ""
    if row.gain is not None:
        gain = f"{points(row.gain)} {interval(row.gain_low, row.gain_high)}"
    scores = [percent(row.val_accuracy), percent(row.test_accuracy)]
    epochs = f"{row.epochs}*" if row.status == "stopped" else str(row.epochs)
    cells = [str(row.rank), row.trial_id, params, *scores, gain, epochs, duration(row.seconds)]
    return [escape(cell) for cell in cells]


def _combined_cells(mark: str, row: EnsembleRow | RefitRow, val_accuracy: float | None) -> list[str]:
    gain = f"{points(row.gain)} {interval(row.gain_low, row.gain_high)}" if row.gain is not None else ""
    scores = [percent(val_accuracy), percent(row.test_accuracy)]
    return [escape(cell) for cell in [mark, row.title, "", *scores, gain, "", duration(row.seconds)]]


def _refit_note(row: RefitRow) -> str:
    return (
        f"= trained again for {row.epochs} epochs on the training and validation images, chosen by the trial's "
        f"validation score: {_over_best(row)} points of test accuracy over the trial"
    )


def _over_best(row: EnsembleRow | RefitRow) -> str:
    return f"{points(row.gain_over_best)} {interval(row.gain_over_best_low, row.gain_over_best_high)}"


def _ensemble_note(row: EnsembleRow) -> str:
    """What it is made of, what it costs, and what it gains over one model."""
    members = ", ".join(f"{member.weight:.2f} {member.trial_id}" for member in row.members)
    return (
        f"+ mean of the probabilities of {members}: {_over_best(row)} points of test accuracy over the best trial, for "
        f"{len(row.members)} forwards an image and {count(row.num_params)} parameters; export.ensemble=true exports it"
    )


def evaluation_table(evaluation: Evaluation) -> Table:
    """Scores of the whole data set as the title, then recall and, of few classes, the confusion matrix."""
    scores = {"accuracy": evaluation.accuracy, "top-5": evaluation.top5_accuracy, "macro-F1": evaluation.macro_f1}
    lines = [f"{evaluation.num_images} images", *(f"{name} {percent(score)} %" for name, score in scores.items())]
    table = plain_table("\n".join(lines))  # the title is no wider than the table, so one line a score
    shows_confusion = len(evaluation.classes) <= LARGEST_CONFUSION
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("recall %", justify="right")
    if shows_confusion:
        for name in evaluation.classes:
            table.add_column(escape(f"as {name}"), justify="right")
    for index, name in enumerate(evaluation.classes):
        counts = evaluation.confusion[index]
        if sum(counts) or shows_confusion:
            predicted = [str(count) for count in counts] if shows_confusion else []
            table.add_row(escape(name), str(sum(counts)), percent(evaluation.recall[name]), *predicted)
    lines = list(evaluation.notes)
    if evaluation.bad:
        lines += [f"{len(evaluation.bad)} images could not be read:", *(f"{b.uri}: {b.reason}" for b in evaluation.bad)]
    table.caption = escape("\n".join(lines)) or None
    table.caption_justify = "left"
    return table


def plain_table(title: str) -> Table:
    """No lines, and the title to the left."""
    title = escape(title)
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
