"""What a resume looks at before it trains anything: damage that can be undone is undone, and a note says so. No torch.

    mend(load_run(run_uri))

A row that is not whole, or whose predictions are not, is removed: the trial is scored again. One whose checkpoint an
export needs, or has found damaged, and that is not whole is removed too: the trial goes back to the checkpoint before.
How far a trial with a row has come is known from its row and its curve; one without starts again where that is lost.
Checkpoints of trials that go on are looked at when they do.
"""

from functools import partial

from tlray import storage
from tlray.activations.charges import load_charges
from tlray.errors import DamagedError
from tlray.runs.board import write_results
from tlray.runs.notes import leave_note
from tlray.runs.prepare import Run, check_derived
from tlray.runs.refit import TRAINED, refit_uri
from tlray.runs.results import ranked
from tlray.runs.trials import (
    RESULT,
    UNREADABLE,
    Recorded,
    delete_trial_result,
    for_each,
    read_recorded,
    trial_uri,
    trials_with,
    unmark_stopped,
)
from tlray.storage.sealed import is_whole
from tlray.training.record import HISTORY, PROGRESS, Progress, history_lines, load_progress, save_progress


def mend(run: Run) -> None:
    """DamagedError for what can neither be made again nor done without."""
    check_derived(run)
    run_uri, trial_ids = run.uri, [trial.trial_id for trial in run.trials]
    found = for_each(trial_ids, lambda trial_id: _whole_row(run_uri, trial_id))
    for_each([trial_id for trial_id in trial_ids if found[trial_id] is None], partial(_mend_unfinished, run_uri))
    rows = {trial_id: recorded for trial_id, recorded in found.items() if recorded is not None}
    results = ranked(recorded.result for recorded in rows.values())
    best = [result.trial_id for result in results if not result.is_baseline][: run.config.export.top_k]

    def is_mended(trial_id: str) -> bool:
        recorded = rows[trial_id]
        is_wanted = trial_id in best or storage.exists(trial_uri(run_uri, trial_id, UNREADABLE))
        return (not is_wanted or _has_checkpoint(run_uri, recorded)) and _has_progress(run_uri, recorded)

    mended = for_each(list(rows), is_mended)
    for trial_id in trials_with(refit_uri(run_uri), TRAINED):
        _mend_refit(run_uri, trial_id)
    write_results(run_uri, {trial_id: row for trial_id, row in rows.items() if mended[trial_id]})


def _mend_refit(run_uri: str, trial_id: str) -> None:
    """What is not whole of a refit goes; it is scored again, or trained again from its last whole checkpoint."""
    home = refit_uri(run_uri)
    try:
        load_progress(trial_uri(home, trial_id))
    except DamagedError:
        storage.delete(trial_uri(home, trial_id, PROGRESS))
        leave_note(run_uri, f"refit/trials/{trial_id}: {PROGRESS} is damaged; the refit starts again")
    try:
        recorded = read_recorded(home, trial_id)
        files = recorded.files if recorded is not None else {}
        if all(is_whole(trial_uri(home, trial_id, name), sha) for name, sha in files.items()):
            return
    except DamagedError:
        pass
    delete_trial_result(home, trial_id)
    leave_note(run_uri, f"refit/trials/{trial_id}: a file is damaged or missing; the refit is scored again")


def _whole_row(run_uri: str, trial_id: str) -> Recorded | None:
    """The row of a trial that has ended and whose predictions are there."""
    try:
        recorded = read_recorded(run_uri, trial_id)
    except DamagedError:
        _open_again(run_uri, trial_id, f"{RESULT} is damaged; the trial is scored again")
        return None
    for name, sha256 in recorded.predictions.items() if recorded is not None else ():  # a failed one has none
        if not is_whole(trial_uri(run_uri, trial_id, name), sha256):
            _open_again(run_uri, trial_id, f"{name} is damaged or missing; the trial is scored again")
            return None
    return recorded


def _has_checkpoint(run_uri: str, recorded: Recorded) -> bool:
    trial_id = recorded.result.trial_id
    storage.delete(trial_uri(run_uri, trial_id, UNREADABLE))
    checkpoints = recorded.checkpoints
    if all(is_whole(trial_uri(run_uri, trial_id, name), sha) for name, sha in checkpoints.items()):
        return True
    unmark_stopped(run_uri, trial_id)
    _open_again(run_uri, trial_id, f"{', '.join(checkpoints)} is damaged or missing; the trial is trained again")
    return False


def _has_progress(run_uri: str, recorded: Recorded) -> bool:
    """Whether it is known how far the trial has come, after it has been worked out where its file was damaged."""
    result = recorded.result
    uri = trial_uri(run_uri, result.trial_id)
    if result.status == "failed" or not recorded.files:
        return True
    try:
        if load_progress(uri).epoch > 0:
            return True
        history = history_lines(uri)
    except DamagedError:
        history = _history_if_whole(uri)
    if len(history) != result.epochs:
        storage.delete(storage.join(uri, PROGRESS))
        unmark_stopped(run_uri, result.trial_id)
        reason = f"{PROGRESS} and {HISTORY} are damaged or missing; the trial is trained again"
        _open_again(run_uri, result.trial_id, reason)
        return False
    charged = load_charges(run_uri).get(result.trial_id, 0)
    progress = Progress(
        epoch=result.epochs,
        best_epoch=result.best_epoch or 0,
        history=history,
        images_seen=result.images_seen,
        prefix_images_computed=result.prefix_images_computed - charged,
        seconds=result.seconds,
        peak_memory_bytes=result.peak_memory_bytes,
        files=recorded.checkpoints,
    )
    save_progress(uri, progress)
    leave_note(run_uri, f"trials/{result.trial_id}: {PROGRESS} was damaged or missing, and is made again")
    return True


def _mend_unfinished(run_uri: str, trial_id: str) -> None:
    uri = trial_uri(run_uri, trial_id)
    try:
        # A curve of two epochs: a progress was there, as it is written before the second epoch begins.
        if load_progress(uri) != Progress() or len(_history_if_whole(uri)) < 2:
            return
        reason = "missing"
    except DamagedError:
        storage.delete(storage.join(uri, PROGRESS))
        reason = "damaged"
    leave_note(run_uri, f"trials/{trial_id}: {PROGRESS} is {reason}; the trial starts again")


def _history_if_whole(uri: str) -> tuple:
    try:
        return history_lines(uri)
    except DamagedError:
        return ()


def _open_again(run_uri: str, trial_id: str, reason: str) -> None:
    delete_trial_result(run_uri, trial_id)
    leave_note(run_uri, f"trials/{trial_id}: {reason}")
