"""What a sweep, or a batch prediction, is doing, on a terminal (a live table) or in a log (one line an event).

Shows trials, epochs, images per second and the time left, which is estimated from the epochs that are done.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tlray.config import TrialConfig
from tlray.runs.plan import in_words
from tlray.runs.results import TrialResult

LINE_EVERY = 5.0  # seconds


class SweepProgress:
    """Context manager and watcher of `run_sweep`; shows running trials and totals on `console`."""

    def __init__(self, trials: Sequence[TrialConfig], finished: Sequence[str], console: Console) -> None:
        self._epochs = {trial.trial_id: trial.epochs for trial in trials}
        self._left = {trial_id: epochs for trial_id, epochs in self._epochs.items() if trial_id not in finished}
        self._chosen = set(self._left)
        self._total = self._epochs_left()
        self._num_finished = len(finished)
        self._running: dict[str, dict[str, Any]] = {}
        self._best: tuple[float, str] | None = None
        self._activations = ""
        self._started = time.monotonic()
        self._console = console
        self._live = Live(console=console, get_renderable=self.table, refresh_per_second=2, transient=True)

    def __enter__(self) -> "SweepProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def trials_chosen(self, trial_ids: Sequence[str], num_waiting: int) -> None:
        """What a budget has room for as far as is known, and how many others wait, which the time left leaves out."""
        self._chosen = set(trial_ids)
        self._total = self._epochs_left()
        self._started = time.monotonic()
        if num_waiting:
            self._console.print(f"{num_waiting} trials wait: the budget may have no room for them", highlight=False)

    def activations_computed(self, done: int, total: int) -> None:
        """`done` of `total` images have been through a frozen prefix."""
        self._activations = f"frozen work: {done} of {total} images" if done < total else ""
        if done == total or not self._console.is_terminal:
            self._console.print(f"frozen work: {done} of {total} images", highlight=False)
        self._started = time.monotonic()  # the time left is estimated from the epochs of trials alone

    def trial_started(self, trial_id: str) -> None:
        self._running.setdefault(trial_id, {})

    def epoch_ended(self, trial_id: str, metrics: dict[str, Any]) -> None:
        self._running[trial_id] = metrics
        self._left[trial_id] = self._epochs[trial_id] - metrics["epoch"]
        if self._best is None or metrics["val_accuracy"] > self._best[0]:
            self._best = (metrics["val_accuracy"], trial_id)
        if not self._console.is_terminal:
            self._console.print(
                f"{trial_id}: epoch {metrics['epoch']}/{self._epochs[trial_id]}, "
                f"val accuracy {metrics['val_accuracy']:.3f}, {metrics['images_per_second']:.0f} images/s"
            )

    def trial_stopped(self, trial_id: str) -> None:
        self._end(trial_id, "stopped early by the scheduler")

    def trial_dropped(self, trial_id: str) -> None:
        self._end(trial_id, "left out: the budget has no room for it")

    def sweep_broke(self, reason: str) -> None:
        """The running trials' processes are gone; they start again from their checkpoints."""
        self._running.clear()
        self._console.print(f"running trials start again from their checkpoints: {reason}", markup=False)

    def trial_ended(self, result: TrialResult) -> None:
        outcome = (
            f"failed: {result.error}" if result.status == "failed" else f"test accuracy {result.test_accuracy:.3f}"
        )
        self._end(result.trial_id, f"{result.status}, {outcome}" if result.status != "failed" else outcome)

    def _end(self, trial_id: str, outcome: str) -> None:
        if trial_id in self._left:  # a stopped trial ends twice: when it is stopped and when it has been scored
            self._num_finished += 1
        self._running.pop(trial_id, None)
        self._left.pop(trial_id, None)
        self._console.print(
            f"[{self._num_finished}/{len(self._epochs)}] {trial_id}: {outcome}{self._time_left()}",
            markup=False,
            highlight=False,
        )

    def _time_left(self) -> str:
        left = self._epochs_left()
        done = self._total - left
        if left == 0 or done == 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * left
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" (about {seconds:.0f} s left)"

    def _epochs_left(self) -> int:
        return sum(epochs for trial_id, epochs in self._left.items() if trial_id in self._chosen)

    def table(self) -> Table:
        """The running trials and the totals, as they stand."""
        speed = sum(metrics.get("images_per_second", 0.0) for metrics in self._running.values())
        best = f", best val accuracy {self._best[0]:.3f} ({self._best[1]})" if self._best else ""
        table = Table(
            title=self._activations
            or f"{self._num_finished} of {len(self._epochs)} trials ended, "
            f"{speed:.0f} images/s{self._time_left()}{best}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        for column in ("running trial", "epoch", "train loss", "val accuracy", "images/s"):
            table.add_column(column, justify="left" if column == "running trial" else "right")
        for trial_id, metrics in self._running.items():
            if metrics:
                cells = [
                    f"{metrics['epoch']}/{self._epochs[trial_id]}",
                    f"{metrics['train_loss']:.3f}",
                    f"{metrics['val_accuracy']:.3f}",
                    f"{metrics['images_per_second']:.0f}",
                ]
            else:
                cells = [f"0/{self._epochs[trial_id]}", "", "", ""]
            table.add_row(trial_id, *cells)
        return table


class PredictionProgress:
    """Called with (images done, of how many): a line at the start, every LINE_EVERY seconds, and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before = -1  # images that earlier starts have done
        self._started = self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._before < 0:
            self._before, self._started, self._said = done, now, now
            known = f", {done} of them predicted by an earlier start" if done else ""
            self._console.print(f"{total} images{known}", highlight=False)
        elif done == total or now - self._said >= LINE_EVERY:
            self._said = now
            speed = (done - self._before) / max(now - self._started, 1e-9)
            left = f", {speed:.0f} images/s, about {in_words((total - done) / speed)} left" if done < total else ""
            self._console.print(f"predicted: {done} of {total} images{left}", highlight=False)
