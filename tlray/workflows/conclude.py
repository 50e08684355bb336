"""After the last trial: leaderboard, export bundles, report, DONE. Nothing here needs Ray.

outcome = conclude(run, console)      # the same after a sweep, after a resume and after a local trial
"""

from collections.abc import Sequence

from rich.console import Console

from tlray.errors import TrialError
from tlray.report import agreement_table, leaderboard_table, read_found, write_report
from tlray.runs.board import write_leaderboard
from tlray.runs.notes import read_notes
from tlray.runs.prepare import Run, finish
from tlray.runs.results import Leaderboard, Outcome
from tlray.runs.trials import load_results
from tlray.workflows.exports import export_best


def conclude(run: Run, console: Console) -> Outcome:
    """Rank, export, report; TrialError with the reasons when no trial has succeeded."""
    leaderboard = write_leaderboard(run.uri, seed=run.config.seed, warnings=run.manifest.warnings)
    notes = read_notes(run.uri)
    _show_notes(notes, console)
    console.print(leaderboard_table(leaderboard))
    found = read_found(run.uri, leaderboard)
    if found is not None:
        console.print(agreement_table(found))
    if not any(row.rank for row in leaderboard.rows):
        _end_if_not_whole(run, leaderboard)
        reasons = sorted({result.error or "" for result in load_results(run.uri)})
        raise TrialError(f"every trial failed: {'; '.join(reasons)}")
    write_report(run.uri)  # before the exports: what a sweep has found is shown even where a format fails
    _end_if_not_whole(run, leaderboard)
    exports = export_best(run, leaderboard, run.config.export.top_k)
    if run.config.export.tta != "none":  # what it gains is measured by the export
        write_report(run.uri)
    _show_notes([note for note in read_notes(run.uri) if note not in notes], console)
    finish(run)
    return Outcome(run.uri, leaderboard, exports)


def _show_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _end_if_not_whole(run: Run, leaderboard: Leaderboard) -> None:
    """TrialError where trials failed for what a resume can mend: the run is not done, its best trial not known."""
    failed = [row for row in leaderboard.rows if row.may_pass]
    if failed:
        raise TrialError(
            f"{len(failed)} of {len(leaderboard.rows)} trials failed for a reason that may pass "
            f"({failed[0].trial_id}: {failed[0].error}); `tlray resume {run.uri}` tries them again"
        )
