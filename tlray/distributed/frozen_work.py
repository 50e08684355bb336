"""The frozen work of a sweep: at once where time does not matter, under a budget one backbone after the other.

    remaining = FrozenWork(run, store, tasks, budget, watch).of(remaining)

With a budget each backbone's pass begins only if there is time for it at the pace of those before. So a machine that is
slower than it was when the plan was made has fewer backbones, each of them whole.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.activations.stored import as_stored_now
from tlray.config import TrialConfig
from tlray.distributed.activation_pass import compute_activations
from tlray.distributed.budgeting import baseline_seconds, scores_so_far
from tlray.distributed.resources import TaskResources
from tlray.distributed.rows import fail, not_ended, not_finished
from tlray.distributed.watch import Watcher
from tlray.runs.budget.clock import Budget
from tlray.runs.budget.estimate import frozen_seconds
from tlray.runs.budget.worth import backbone_key, by_score
from tlray.runs.prepare import Run


def time_for_others(run: Run, trials: Sequence[TrialConfig], budget: Budget) -> Callable[[bool], float]:
    """Seconds that are left beside what the baseline needs, if it is among `trials` and has not ended.

    All of them while nothing could win yet, which the argument says: without a winner nothing is exported.
    """
    baseline = baseline_seconds(run, not_ended(run.uri, trials)) if budget.is_limited else 0.0
    had_one = bool(baseline and scores_so_far(run))

    def left(has_one: bool) -> float:
        budget.tick()
        return budget.left() - (budget.pace * baseline if has_one or had_one else 0.0)

    return left


@dataclass(frozen=True)
class FrozenWork:
    """What is needed for it."""

    run: Run
    store: ActivationStore
    tasks: TaskResources
    budget: Budget
    watch: Watcher

    def of(self, remaining: Sequence[TrialConfig]) -> list[TrialConfig]:
        """Compute what `remaining` read -> those that there was time for. What cannot be computed fails its readers."""
        time_left = time_for_others(self.run, remaining, self.budget)
        computed = False

        def left() -> float:
            return time_left(computed)

        asked = {trial.trial_id for trial in remaining}
        out = {trial.trial_id for trial in not_finished(self.run.uri, self.run.trials)} - asked
        passes = self._passes(remaining)
        out |= {trial_id for ids in passes for trial_id in ids}  # until it is their turn
        for number, ids in enumerate(passes):
            sources = self._missing(ids)
            if number > 0 and self.budget.pace * self._seconds(sources) > left():
                continue
            out -= ids
            self._compute(sources, out, left)
            if left() <= 0:
                out |= {one for source in self._missing(ids) if not _is_whole(source) for one in source.trials}
            computed = True
        return [trial for trial in remaining if trial.trial_id not in out]

    def _passes(self, remaining: Sequence[TrialConfig]) -> list[set[str]]:
        """Ids of trials whose frozen work is done together; those of better backbones come first."""
        reading = {one for source in self.run.plan.activations if source.materialise for one in source.trials}
        readers = [trial for trial in remaining if trial.trial_id in reading]
        if not self.budget.is_limited:
            return [{trial.trial_id for trial in readers}]
        of_backbone: dict[str, set[str]] = defaultdict(set)
        for trial in readers:
            of_backbone[backbone_key(trial.backbone)].add(trial.trial_id)
        return [of_backbone[key] for key in by_score(readers, scores_so_far(self.run))]

    def _compute(self, sources: Sequence[ActivationSource], out: set[str], left: Callable[[], float]) -> None:
        """For all trials but those in `out`; of these, `sources` are what was not there before."""
        readers = [trial for trial in self.run.trials if trial.trial_id not in out]
        expected, started = self._seconds(sources), time.monotonic()
        failures = compute_activations(self.run, self.store, self.tasks, self.watch.activations_computed, readers, left)
        if expected > 0:
            self.budget.measured(expected, time.monotonic() - started)
        reasons = {
            trial_id: failures[source.backbone.id]
            for source in self.run.plan.activations
            if source.materialise and source.backbone.id in failures
            for trial_id in source.trials
        }
        unfinished = {trial.trial_id for trial in not_finished(self.run.uri, readers)}
        fail(self.run, {trial_id: reason for trial_id, reason in reasons.items() if trial_id in unfinished}, self.watch)

    def _missing(self, ids: set[str]) -> list[ActivationSource]:
        """What these trials read, with what is stored of it by now; nothing where time does not matter."""
        if not self.budget.is_limited:
            return []
        read = [source for source in self.run.plan.activations if not ids.isdisjoint(source.trials)]
        return as_stored_now([source for source in read if source.materialise], self.run.manifest, self.store)

    def _seconds(self, sources: Sequence[ActivationSource]) -> float:
        estimate = self.run.plan.estimate
        return 0.0 if estimate is None else frozen_seconds(sources, estimate.machines)


def _is_whole(source: ActivationSource) -> bool:
    return source.num_stored >= source.num_draws
