"""The folder of a group of linear probes while it trains, so that a killed group goes on from its last commit.

    groups/<first trial id>/state-<token>.safetensors   parameters and moments of rows that train, best ones of all
                            progress.json               written last; tells how far every row is, names the state and
                                                        the one before it, which is gone back to where it is damaged

It is deleted when every row stands in its own trial's folder.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tlray import storage
from tlray.config import TrialConfig
from tlray.errors import DamagedError
from tlray.runs.notes import leave_note
from tlray.runs.trials import TRAIN_AGAIN
from tlray.storage.sealed import is_whole, read_document, write_document
from tlray.training.checkpoint import read_tensors, write_tensors
from tlray.training.loop import is_done
from tlray.training.record import PROGRESS, Progress, parse_progress

ANEW = "the trials that were trained together start again"


@dataclass(frozen=True)
class Row:
    """One trial of a group and how far it is; one with an error has failed."""

    trial: TrialConfig
    progress: Progress = field(default_factory=Progress)
    error: str | None = None

    @property
    def is_training(self) -> bool:
        return self.error is None and not is_done(self.progress, self.trial.recipe)


@dataclass(frozen=True)
class SavedRow:
    """A row as it was committed; `place` is its position in the stack of those that trained, if it did."""

    progress: Progress
    error: str | None
    position: int
    place: int | None


class GroupFolder:
    """Reads and writes the folder of one group; `uri` is local or s3://."""

    def __init__(self, run_uri: str, first_trial_id: str) -> None:
        self.uri = storage.join(run_uri, "groups", first_trial_id)
        self._run_uri = run_uri
        self._progress_uri = storage.join(self.uri, PROGRESS)

    def load_rows(self) -> dict[str, SavedRow]:
        """What was committed last, by trial id; empty where nothing was."""
        rows: dict[str, SavedRow] = {}
        num_training = 0
        for position, entry in enumerate(self._load()["rows"]):
            place = num_training if entry["is_training"] else None
            num_training += entry["is_training"]
            rows[entry["trial_id"]] = SavedRow(parse_progress(entry["progress"]), entry["error"], position, place)
        return rows

    def load_tensors(self, frozen_hash: str) -> dict[str, torch.Tensor]:
        """The state that belongs to `load_rows`; TrialError when it was made over other frozen weights."""
        committed = self._load()
        return read_tensors(storage.join(self.uri, committed["state"]), committed["checksum"], frozen_hash)

    def save(self, rows: Sequence[Row], tensors: Mapping[str, torch.Tensor], frozen_hash: str) -> None:
        """Commit: the state under a name of its own, then the progress, then drop the state before the one before."""
        earlier = self._load()
        name = f"state-{secrets.token_hex(6)}.safetensors"
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        checksum = write_tensors(storage.join(self.uri, name), on_cpu, frozen_hash)
        entries = [
            {
                "trial_id": row.trial.trial_id,
                "is_training": row.is_training,
                "error": row.error,
                "progress": asdict(row.progress),
            }
            for row in rows
        ]
        before = {**earlier, "before": None} if earlier["state"] is not None else None
        write_document(self._progress_uri, {"state": name, "checksum": checksum, "rows": entries, "before": before})
        if earlier["before"] is not None:
            storage.delete(storage.join(self.uri, earlier["before"]["state"]))

    def go_back(self) -> None:
        """Make the progress one whose state is whole: the last, else the one before, else none; a note says so."""
        try:
            last = self._load()
        except DamagedError:
            self._begin_anew(f"{PROGRESS} is damaged")
            return
        if last["state"] is None:
            if len(self._states()) > 1:  # the second is written after the first progress
                self._note(f"{PROGRESS} is missing; {ANEW}")
            return
        if self._has_state(last):
            return
        reason = f"{last['state']} is damaged or missing"
        if last["before"] is None or not self._has_state(last["before"]):
            self._begin_anew(reason)
            return
        write_document(self._progress_uri, last["before"])
        self._note(f"{reason}; the group goes on from its commit before")

    def delete(self) -> None:
        """Remove the group's files; the progress first, so that it never names a state that is gone."""
        storage.delete(self._progress_uri)
        for uri in self._states():
            storage.delete(uri)

    def _states(self) -> list[str]:
        try:
            return [info.uri for info in storage.list_files(self.uri)]
        except storage.NotFoundError:
            return []

    def _has_state(self, committed: dict[str, Any]) -> bool:
        return is_whole(storage.join(self.uri, committed["state"]), committed["checksum"])

    def _begin_anew(self, reason: str) -> None:
        storage.delete(self._progress_uri)
        self._note(f"{reason}; {ANEW}")

    def _note(self, text: str) -> None:
        leave_note(self._run_uri, f"groups/{self.uri.rpartition('/')[2]}: {text}")

    def _load(self) -> dict[str, Any]:
        try:
            return read_document(self._progress_uri, TRAIN_AGAIN)
        except storage.NotFoundError:
            return {"state": None, "rows": [], "before": None}
