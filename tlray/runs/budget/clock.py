"""The time that a run has spent and may still take, by the user's clock.

    budget = Budget(run_uri, limit_seconds(config), reserve, began=process_began())
    budget.left()

Counted from the start of the command, over all commands that worked on the run, and not while none does. How fast the
machine really is shows as the work goes on: what was expected to take so long, and took longer, makes all that is still
expected longer, the end of the run included.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tlray import storage
from tlray.storage.sealed import read_document, write_document

FILE = "budget.json"
SAVED_EVERY = 5.0  # seconds at least, between two notes of the time that is spent
BELIEF = 20.0  # seconds of work by which the plan's estimate is believed, before any is measured
FASTEST, SLOWEST = 0.7, 10.0  # bounds of the pace
BUSIEST = 2.0  # bound of what the load adds to the end: it is a look of a moment


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
    """The clock of a run; `reserve` seconds of the limit, at the plan's pace, are kept for its conclusion."""

    def __init__(
        self,
        run_uri: str,
        limit: float,
        reserve: float = 0.0,
        *,
        began: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`began`: the start of this command by `now`, by default this moment."""
        self._uri = storage.join(run_uri, FILE)
        self._limit, self._reserve, self._now = limit, reserve, now
        earlier = read_spent(run_uri)
        self._before, self.dropped = (earlier.seconds, earlier.dropped) if earlier is not None else (0.0, ())
        self._began = now() if began is None else began
        self._saved = -math.inf
        self._expected, self._taken = BELIEF, BELIEF
        self._load_ratio = 1.0

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self._limit)

    @property
    def pace(self) -> float:
        """What work takes, of what the plan expects."""
        return min(SLOWEST, max(FASTEST, self._taken / self._expected))

    def measured(self, expected: float, taken: float) -> None:
        """Work that the plan has expected to take so many seconds, and how many it took."""
        self._expected += expected
        self._taken += taken

    def look_at_load(self, load: float, planned: float) -> None:
        """How busy the machine is now and was when the plan was made: the end will take as much longer."""
        self._load_ratio = min(BUSIEST, load / planned)

    def spent(self) -> float:
        """Seconds, those of earlier commands included."""
        return self._before + self._now() - self._began

    def left(self) -> float:
        """Seconds until the conclusion has to begin; infinite without a limit."""
        return self._limit - max(1.0, self.pace, self._load_ratio) * self._reserve - self.spent()

    def is_overrun(self, by: float) -> bool:
        """Whether more than the limit and `by` of it, a fraction, is spent."""
        return self.spent() > (1 + by) * self._limit

    def set_aside(self, seconds: float) -> None:
        """Keep so much more for the conclusion."""
        self._reserve += seconds

    def tick(self) -> None:
        """Note what is spent, so that a resume goes on counting; cheap enough to be called at every event."""
        if self.is_limited and self._now() - self._saved > SAVED_EVERY:
            self.save()

    def leave_out(self, trial_ids: Sequence[str]) -> None:
        """All trials that there was no room for; they have no row."""
        self.dropped = tuple(trial_ids)
        self.save()

    def save(self) -> None:
        """Write budget.json."""
        self._saved = self._now()
        content = {"limit_seconds": self._limit, "spent_seconds": self.spent(), "dropped": self.dropped}
        write_document(self._uri, content)
