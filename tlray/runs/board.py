"""What is derived from the trials of a run, and made again whenever it is asked for: results.jsonl, leaderboard.json.

    append_result(run_uri, result)                     # while a sweep runs, for whoever looks on
    leaderboard = write_leaderboard(run_uri, seed=0)   # afterwards, with results.jsonl, from trials/

Nothing in tlray reads results.jsonl to know of a trial.
"""

import json

from tlray import storage
from tlray.runs.ensemble import make_ensemble
from tlray.runs.notes import leave_note
from tlray.runs.predictions import load_correctness
from tlray.runs.refit import make_refit
from tlray.runs.results import Leaderboard, TrialResult, build_leaderboard
from tlray.runs.trials import Recorded, for_each, load_recorded
from tlray.storage.sealed import read_document, sealed, unsealed, write_document

RESULTS, LEADERBOARD = "results.jsonl", "leaderboard.json"


def append_result(run_uri: str, result: TrialResult) -> None:
    """Add a row to results.jsonl, in the place of an earlier one of the trial.

    Object stores cannot append, so the file is rewritten, atomically, everywhere.
    """
    lines, _ = _whole_lines(run_uri)
    kept = [line for line in lines if json.loads(line)["trial_id"] != result.trial_id]
    _write_lines(run_uri, [*kept, _line(result)])


def write_results(run_uri: str, recorded: dict[str, Recorded]) -> None:
    """results.jsonl with the rows of the trials that have ended; says so where lines were torn or damaged."""
    _, num_broken = _whole_lines(run_uri)
    if num_broken:
        count = "a torn or damaged line was" if num_broken == 1 else f"{num_broken} torn or damaged lines were"
        leave_note(run_uri, f"{RESULTS}: {count} dropped, and the rows made again from trials/")
    _write_lines(run_uri, [_line(one.result) for one in recorded.values()])


def make_leaderboard(run_uri: str, *, seed: int = 0) -> Leaderboard:
    """The run as it stands now, from trials/."""
    return _leaderboard(run_uri, load_recorded(run_uri), seed)


def write_leaderboard(run_uri: str, *, seed: int = 0, warnings: tuple[str, ...] = ()) -> Leaderboard:
    """The same, also written to results.jsonl and leaderboard.json; `warnings`: the manifest's."""
    recorded = load_recorded(run_uri)
    leaderboard = _leaderboard(run_uri, recorded, seed).model_copy(update={"warnings": warnings})
    write_results(run_uri, recorded)
    write_document(storage.join(run_uri, LEADERBOARD), leaderboard.model_dump(mode="json"))
    return leaderboard


def load_leaderboard(run_uri: str) -> Leaderboard:
    """The run's leaderboard as last written; StorageError where there is none."""
    uri = storage.join(run_uri, LEADERBOARD)
    return Leaderboard.model_validate(read_document(uri, "`tlray report` makes it again"))


def _leaderboard(run_uri: str, recorded: dict[str, Recorded], seed: int) -> Leaderboard:
    scored = [trial_id for trial_id, one in recorded.items() if one.result.status != "failed"]
    correctness = for_each(scored, lambda trial_id: load_correctness(run_uri, recorded[trial_id]))
    leaderboard = build_leaderboard([one.result for one in recorded.values()], correctness, seed)
    ensemble, reason = make_ensemble(run_uri, recorded, seed=seed)
    champion, baseline = leaderboard.champion, leaderboard.baseline
    refit = None
    if champion is not None:
        reference = recorded[baseline.trial_id] if baseline is not None else None
        refit = make_refit(run_uri, recorded[champion.trial_id], reference, seed=seed)
    return leaderboard.model_copy(update={"ensemble": ensemble, "no_ensemble_reason": reason, "refit": refit})


def _line(result: TrialResult) -> str:
    return sealed(result.model_dump(mode="json"))


def _whole_lines(run_uri: str) -> tuple[list[str], int]:
    """The lines of results.jsonl that are what was written, and how many others there are."""
    try:
        data = storage.read_bytes(storage.join(run_uri, RESULTS))
    except storage.NotFoundError:
        return [], 0
    *lines, torn = data.decode(errors="replace").split("\n")
    whole = [line for line in lines if _is_whole(line)]
    return whole, len(lines) - len(whole) + bool(torn)


def _is_whole(line: str) -> bool:
    try:
        unsealed(line)
    except ValueError:
        return False
    return True


def _write_lines(run_uri: str, lines: list[str]) -> None:
    storage.write_text(storage.join(run_uri, RESULTS), "".join(line + "\n" for line in lines))
