"""The folder of a group of linear probes while it trains, so that a killed group goes on from its last commit.

    groups/<first trial id>/state-<token>.safetensors   parameters and moments of rows that train, best ones of all
                            progress.json               written last; names the state, tells how far every row is

It is deleted when every row stands in its own trial's folder.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tlray import storage
from tlray.config import TrialConfig
from tlray.training.checkpoint import read_tensors, write_tensors
from tlray.training.loop import is_done
from tlray.training.record import Progress, parse_progress


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
        self._progress_uri = storage.join(self.uri, "progress.json")

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
        return read_tensors(storage.join(self.uri, self._load()["state"]), frozen_hash)

    def save(self, rows: Sequence[Row], tensors: Mapping[str, torch.Tensor], frozen_hash: str) -> None:
        """Commit: the state under a name of its own, then the progress, then drop the state before."""
        before = self._load()["state"]
        name = f"state-{secrets.token_hex(6)}.safetensors"
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_tensors(storage.join(self.uri, name), on_cpu, frozen_hash)
        entries = [
            {
                "trial_id": row.trial.trial_id,
                "is_training": row.is_training,
                "error": row.error,
                "progress": asdict(row.progress),
            }
            for row in rows
        ]
        storage.write_text(self._progress_uri, json.dumps({"state": name, "rows": entries}))
        if before is not None:
            storage.delete(storage.join(self.uri, before))

    def delete(self) -> None:
        """Remove the group's files; the progress first, so that it never names a state that is gone."""
        storage.delete(self._progress_uri)
        for info in list(storage.list_files(self.uri)):
            storage.delete(info.uri)

    def _load(self) -> dict[str, Any]:
        if not storage.exists(self._progress_uri):
            return {"state": None, "rows": []}
        return json.loads(storage.read_text(self._progress_uri))
