"""The time that a run has spent and may still take.

    budget = Budget(run_uri, limit_seconds(config), reserve)
    budget.left()

Counted from the sweep's start, over all parts of an interrupted run, and not while nothing runs.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tlray import storage
from tlray.storage.sealed import read_document, write_document

FILE = "budget.json"
SAVED_EVERY = 5.0  # seconds at least, between two notes of the time that is spent


@dataclass(frozen=True)
class Spent:
    """What budget.json says of a run."""

    limit: float  # seconds
    seconds: float
    dropped: tuple[str, ...]  # trials that there was no room for


def read_spent(run_uri: str) -> Spent | None:
    """None for a run without a budget, or whose sweep has not begun; DamagedError."""
    try:
        content = read_document(storage.join(run_uri, FILE), "remove it, and the run's time is counted from nothing")
    except storage.NotFoundError:
        return None
    return Spent(content["limit_seconds"], content["spent_seconds"], tuple(content["dropped"]))


class Budget:
    """The clock of a run; `reserve` seconds of the limit are kept for its conclusion."""

    def __init__(self, run_uri: str, limit: float, reserve: float = 0.0) -> None:
        self._uri = storage.join(run_uri, FILE)
        self._limit, self._reserve = limit, reserve
        earlier = read_spent(run_uri)
        self._before, self.dropped = (earlier.seconds, earlier.dropped) if earlier is not None else (0.0, ())
        self._started = time.monotonic()
        self._saved = -math.inf

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self._limit)

    def spent(self) -> float:
        """Seconds, those of earlier parts of the run included."""
        return self._before + time.monotonic() - self._started

    def left(self) -> float:
        """Seconds until the conclusion has to begin; infinite without a limit."""
        return self._limit - self._reserve - self.spent()

    def tick(self) -> None:
        """Note what is spent, so that a resume goes on counting; cheap enough to be called at every event."""
        if self.is_limited and time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def leave_out(self, trial_ids: Sequence[str]) -> None:
        """All trials that there was no room for; they have no row."""
        self.dropped = tuple(trial_ids)
        self.save()

    def save(self) -> None:
        """Write budget.json."""
        self._saved = time.monotonic()
        content = {"limit_seconds": self._limit, "spent_seconds": self.spent(), "dropped": self.dropped}
        write_document(self._uri, content)
