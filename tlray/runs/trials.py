"""The trials of a run: trials/<id>/ is the one truth of each, and everything else about them is derived from it.

    states = read_states(run_uri, trial_ids)           # many at once: on S3 each is a round trip
    results = load_results(run_uri)                    # of all trials that have ended

    trials/<id>/trial.json     what is to be trained; worked out from the configuration again where it is damaged
                result.json    the final row, and the checksums of what it was made from; written last
                unreadable     an export has found the checkpoint damaged: the next resume trains the trial again
                stopped        the scheduler has stopped the trial, which is still to be scored

A trial with a result.json has ended, whatever results.jsonl or a mark may say; a failed one is tried again by a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from tlray import storage
from tlray.errors import DamagedError, TlrayError, plain_reason
from tlray.runs.results import TrialResult
from tlray.storage.sealed import read_document, write_document

READERS = 32  # threads
TRIAL, RESULT = "trial.json", "result.json"
PREDICTION_FILES = {"val": "val_predictions.parquet", "test": "test_predictions.parquet"}
STOPPED, UNREADABLE = "stopped", "unreadable"
SCORE_AGAIN = "`tlray resume` scores the trial again"
TRAIN_AGAIN = "`tlray resume` goes back to the last whole checkpoint of the trial"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Recorded:
    """A trial's final row with the sha256 of the files that it speaks of, by name: checkpoint and predictions."""

    result: TrialResult
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def predictions(self) -> dict[str, str]:
        return {name: sha for name, sha in self.files.items() if name in PREDICTION_FILES.values()}

    @property
    def checkpoints(self) -> dict[str, str]:
        return {name: sha for name, sha in self.files.items() if name not in PREDICTION_FILES.values()}


@dataclass(frozen=True)
class TrialState:
    """What the folder of a trial says of it."""

    recorded: Recorded | None
    was_stopped: bool

    @property
    def result(self) -> TrialResult | None:
        return self.recorded.result if self.recorded is not None else None

    @property
    def is_finished(self) -> bool:
        """Whether the trial has a final row; one that failed is tried again by a resume."""
        return self.result is not None and self.result.status != "failed"

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to train: the trial has a row, also a failed one, or was stopped."""
        return self.result is not None or self.was_stopped


def trial_uri(run_uri: str, trial_id: str, *names: str) -> str:
    return storage.join(run_uri, "trials", trial_id, *names)


def read_states(run_uri: str, trial_ids: Sequence[str]) -> dict[str, TrialState]:
    """The state of each trial, by id in the order given."""

    def state(trial_id: str) -> TrialState:
        recorded = read_recorded(run_uri, trial_id)
        return TrialState(recorded, recorded is None and was_stopped(run_uri, trial_id))

    return for_each(trial_ids, state)


def for_each(trial_ids: Sequence[str], do: Callable[[str], Value]) -> dict[str, Value]:
    """`do` for many trials at once -> what it gave, by id in the order given."""
    if not trial_ids:
        return {}
    with ThreadPoolExecutor(min(READERS, len(trial_ids))) as pool:
        return dict(zip(trial_ids, pool.map(do, trial_ids), strict=True))


def load_recorded(run_uri: str) -> dict[str, Recorded]:
    """Of all trials that have ended, by id in the order of the ids; DamagedError for a row that is not whole."""
    ids = trials_with(run_uri, RESULT)
    found = for_each(ids, lambda trial_id: read_recorded(run_uri, trial_id))
    return {trial_id: recorded for trial_id, recorded in found.items() if recorded is not None}


def load_results(run_uri: str) -> list[TrialResult]:
    """The final rows of all trials that have ended, in the order of their ids."""
    return [recorded.result for recorded in load_recorded(run_uri).values()]


def trials_with(run_uri: str, name: str) -> list[str]:
    """Ids of the trials whose folder holds a file of this name, sorted."""
    try:
        uris = [info.uri for info in storage.list_files(storage.join(run_uri, "trials"), num_threads=READERS)]
    except storage.NotFoundError:
        return []
    return sorted(uri.split("/")[-2] for uri in uris if uri.endswith(f"/{name}"))


def read_recorded(run_uri: str, trial_id: str) -> Recorded | None:
    """The trial's final row, None while it has not ended; DamagedError for one that is not whole."""
    uri = trial_uri(run_uri, trial_id, RESULT)
    try:
        document = read_document(uri, SCORE_AGAIN)
    except storage.NotFoundError:
        return None
    files = document.pop("files", {})
    result = _parse(document, uri)
    if result.trial_id != trial_id:
        raise DamagedError.of(uri, f"it is the row of {result.trial_id}; {SCORE_AGAIN}")
    return Recorded(result, files)


def read_trial_result(run_uri: str, trial_id: str) -> TrialResult | None:
    """The trial's final row, None while it has not ended."""
    recorded = read_recorded(run_uri, trial_id)
    return recorded.result if recorded is not None else None


def write_trial_result(run_uri: str, result: TrialResult, files: Mapping[str, str] | None = None) -> None:
    """Its presence means that the trial has ended. `files`: sha256 by name of the checkpoint and the predictions."""
    document = {**result.model_dump(mode="json"), "files": dict(files or {})}
    write_document(trial_uri(run_uri, result.trial_id, RESULT), document)


def delete_trial_result(run_uri: str, trial_id: str) -> None:
    storage.delete(trial_uri(run_uri, trial_id, RESULT))


def checkpoint_of(run_uri: str, trial_id: str) -> tuple[str, str]:
    """(location, sha256) of the checkpoint that a trial's row was made from; TlrayError where it has none."""
    recorded = read_recorded(run_uri, trial_id)
    if recorded is None or recorded.result.checkpoint is None:
        raise TlrayError(f"{trial_uri(run_uri, trial_id)} has no scored checkpoint: `tlray resume` trains the trial")
    name = recorded.result.checkpoint.rpartition("/")[2]
    return trial_uri(run_uri, trial_id, name), recorded.files[name]


def mark_stopped(run_uri: str, trial_id: str) -> None:
    """Note that the scheduler has stopped the trial, which is still to be scored."""
    storage.write_text(trial_uri(run_uri, trial_id, STOPPED), "")


def unmark_stopped(run_uri: str, trial_id: str) -> None:
    storage.delete(trial_uri(run_uri, trial_id, STOPPED))


def was_stopped(run_uri: str, trial_id: str) -> bool:
    return storage.exists(trial_uri(run_uri, trial_id, STOPPED))


def _parse(document: dict[str, Any], where: str) -> TrialResult:
    try:
        return TrialResult.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise TlrayError(f"{where}: not a trial's row: {name} {plain_reason(problem)}") from None
