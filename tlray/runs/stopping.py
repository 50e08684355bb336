"""Which trials are stopped early: successive halving among trials of one kind. Neither Ray nor torch here.

    halving = Halving(config.sweep, trials)
    stops = halving.report(trial_id, epoch, val_accuracy)

Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020) with
three changes. A trial competes with trials of its own *kind* only: a head is good after one epoch, a network that
trains whole is not. Two trials are compared after every epoch, at the last point that both have reached, and not at
rungs alone: who came first is overtaken later, too. And the share that goes on falls evenly from rung to rung.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tlray.config import SweepConfig, TrialConfig
from tlray.config.thawing import uncounted_epochs

GRACE = 1 / 3  # of a trial's epochs, by default
ROUNDING = 1e-9


def kind_of(trial: TrialConfig) -> str:
    """Trials of equal kinds compete: those of one freeze strategy, over all backbones."""
    return trial.strategy.strategy


def is_spared(trial: TrialConfig) -> bool:
    """Never stopped, and no rival of others: the baseline, which gains need, and what one would do by hand.

    So is a probe that is solved: its only epoch is the whole of it.
    """
    return trial.is_baseline or trial.is_known_recipe or trial.is_solved


@dataclass(frozen=True)
class Course:
    """A trial's epochs on the scale on which it is compared.

    With `grace_period: auto` that is the share of its own epochs, without those of warm-up and of thawing; with a
    number of epochs it is epochs.
    """

    epochs: int
    uncounted: int
    grace: float  # on the scale
    reduction_factor: float
    is_relative: bool

    def place(self, epoch: int) -> float:
        if not self.is_relative:
            return float(epoch)
        return max(0.0, (epoch - self.uncounted) / (self.epochs - self.uncounted))

    def epochs_until(self, place: float) -> int:
        """The last epoch at or before it."""
        if not self.is_relative:
            return int(place + ROUNDING)
        return int(self.uncounted + place * (self.epochs - self.uncounted) + ROUNDING)

    @property
    def grace_epochs(self) -> int:
        """Epochs before the trial may be stopped."""
        return next((epoch for epoch in range(1, self.epochs) if self.is_judged(epoch)), self.epochs)

    def is_judged(self, epoch: int) -> bool:
        """Whether the trial may be stopped after `epoch`; after the last there is nothing left to save."""
        return epoch < self.epochs and self.place(epoch) >= self.grace - ROUNDING

    def share(self, epoch: int) -> float:
        """Of its kind that goes on after `epoch`: one in `reduction_factor` at the end of the grace period, one in its
        square when the trial has come that many times as far, and evenly less in between."""
        return self.grace / (self.reduction_factor * max(self.place(epoch), self.grace))


def course_of(trial: TrialConfig, sweep: SweepConfig) -> Course:
    is_relative = sweep.grace_period == "auto"
    return Course(
        epochs=trial.epochs,
        uncounted=uncounted_epochs(trial.strategy, trial.recipe),
        grace=GRACE if sweep.grace_period == "auto" else float(sweep.grace_period),
        reduction_factor=sweep.reduction_factor,
        is_relative=is_relative,
    )


def expected_epochs(trial: TrialConfig, sweep: SweepConfig) -> float:
    """Epochs of a trial on average, where many trials of its kind compete."""
    epochs = trial.epochs
    if sweep.scheduler == "fifo" or is_spared(trial):
        return epochs
    course = course_of(trial, sweep)
    shares = (course.share(epoch) if course.is_judged(epoch) else 1.0 for epoch in range(1, epochs))
    return 1 + sum(shares)


def words_on_stopping(sweep: SweepConfig, trials: Iterable[TrialConfig]) -> tuple[str, ...]:
    """One line for the plan: which trials compete, and from which epoch on one may be stopped."""
    if sweep.scheduler == "fifo":
        return ()
    grace: dict[str, list[int]] = defaultdict(list)
    for trial in trials:
        if not is_spared(trial):
            grace[kind_of(trial)].append(course_of(trial, sweep).grace_epochs)
    kinds = [f"{kind} {_from_to(epochs)}" for kind, epochs in grace.items() if len(epochs) > 1]
    if not kinds:
        return ()
    return (
        f"sweep.scheduler asha: a trial is compared with trials of its strategy only, and not before so many epochs "
        f"(sweep.grace_period {sweep.grace_period}): {', '.join(kinds)}",
    )


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


@dataclass
class _Runner:
    """How far a trial has come: the best validation accuracy that it had after each epoch, -inf before any was told."""

    course: Course
    best: list[float] = field(default_factory=list)

    @property
    def place(self) -> float:
        return self.course.place(len(self.best))

    @property
    def has_passed_grace(self) -> bool:
        return bool(self.best) and self.place >= self.course.grace - ROUNDING

    def note(self, epoch: int, val_accuracy: float) -> None:
        """Later epochs are forgotten: a trial that goes on from an earlier checkpoint does them again."""
        del self.best[epoch - 1 :]
        before = self.best_at(math.inf)
        self.best += [before] * (epoch - 1 - len(self.best))
        self.best.append(max(before, val_accuracy))

    def best_at(self, place: float) -> float:
        """-inf where the trial has no epoch that early."""
        num_epochs = len(self.best) if place >= self.place else self.course.epochs_until(place)
        return self.best[num_epochs - 1] if num_epochs else -math.inf


class Halving:
    """What all trials of a run have reported, those of earlier parts of it included, and what follows from it."""

    def __init__(
        self,
        sweep: SweepConfig,
        trials: Iterable[TrialConfig],
        history: Mapping[str, Iterable[tuple[int, float]]] = MappingProxyType({}),
        kind: Callable[[TrialConfig], str] = kind_of,
    ) -> None:
        """`history`: (epoch, validation accuracy) of each trial so far, by id."""
        self._kinds: dict[str, dict[str, _Runner]] = defaultdict(dict)
        self._kind_of: dict[str, str] = {}
        for trial in trials:
            if not is_spared(trial):
                self._kind_of[trial.trial_id] = kind(trial)
                self._kinds[kind(trial)][trial.trial_id] = _Runner(course_of(trial, sweep))
        for trial_id in history.keys() & self._kind_of.keys():
            for epoch, val_accuracy in history[trial_id]:
                self._kinds[self._kind_of[trial_id]][trial_id].note(epoch, val_accuracy)

    def report(self, trial_id: str, epoch: int, val_accuracy: float) -> bool:
        """Note an epoch -> whether the trial is to be stopped after it."""
        if trial_id not in self._kind_of:
            return False
        rivals = dict(self._kinds[self._kind_of[trial_id]])
        trial = rivals.pop(trial_id)
        trial.note(epoch, val_accuracy)
        return trial.course.is_judged(epoch) and self._loses(trial, epoch, rivals.values())

    @staticmethod
    def _loses(trial: _Runner, epoch: int, rivals: Iterable[_Runner]) -> bool:
        """Whether too many were better at the last point that each of them and the trial have both reached.

        The best so far of its kind always goes on: it may have been slow at first.
        """
        comparable = [rival for rival in rivals if rival.has_passed_grace]
        best = trial.best_at(math.inf)
        if all(best >= rival.best_at(math.inf) for rival in comparable):
            return False
        places = [min(trial.place, rival.place) for rival in comparable]
        better = sum(
            rival.best_at(place) > trial.best_at(place) for rival, place in zip(comparable, places, strict=True)
        )
        going_on = max(1, math.ceil((len(comparable) + 1) * trial.course.share(epoch) - ROUNDING))
        return better >= going_on
