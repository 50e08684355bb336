"""The sweep: frozen work once, then the trials that read it and the others, each one's row appended as it ends.

    run_sweep(run, watch)

What is finished and how far the rest is stands in the run folder and in the store of activations. So a resume is this
same call: it computes what no shard holds, starts what has no final row, and the trials find their checkpoints.
Linear probes on shared features train as groups; everything else runs under Ray Tune, which is imported only then.
"""

import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext

import ray

from tlray.activations.charges import shard_mark
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.planned import source_of
from tlray.activations.store import ActivationStore
from tlray.activations.stored import as_stored_now
from tlray.config import TrialConfig
from tlray.data.prepared import open_prepared
from tlray.distributed.budgeting import (
    look_at_load,
    open_budget,
    spare_trials,
    within_budget,
    within_number,
    worth_their_frozen_work,
)
from tlray.distributed.cluster import cluster_summary, connect
from tlray.distributed.frozen_work import FrozenWork, time_for_others
from tlray.distributed.probe_groups import run_probe_groups
from tlray.distributed.resources import TaskResources, TrialResources, model_tasks, trial_resources
from tlray.distributed.rows import fail, not_ended, not_finished, still_to_score
from tlray.distributed.tasks import conclude_task
from tlray.distributed.watch import Watcher
from tlray.errors import TrialError
from tlray.runs.board import append_result
from tlray.runs.budget.clock import Budget
from tlray.runs.budget.estimate import sweep_seconds
from tlray.runs.prepare import Run
from tlray.runs.trials import delete_trial_result, for_each, trial_uri
from tlray.training.fusion import can_fuse, fusion_key
from tlray.training.record import load_progress


def run_sweep(run: Run, watch: Watcher, began: float | None = None) -> None:
    """Run every trial that has no final row yet and fits the budget, then score those that were stopped early.

    `began`: the start of the command on the scale of time.monotonic(), from which the budget counts; by default now.
    """
    connect()
    cluster = cluster_summary(run.config.cluster)
    shares = {planned.trial_id: planned.gpu_share for planned in run.plan.trials}
    resources = trial_resources(run.config, cluster, shares)
    open_trials = not_finished(run.uri, run.trials)
    for trial in open_trials:  # a failed attempt's row must not be taken for the new attempt's
        delete_trial_result(run.uri, trial.trial_id)
    budget = open_budget(run, began)
    remaining = within_number(run, open_trials)
    store = open_store(run.config)
    kept = [source for source in run.plan.activations if source.materialise]
    keys = [ActivationKey(**fields) for source in kept for fields in source.keys]
    images = open_prepared(run.config.data)
    with (
        store.lease(shard_mark(run.uri), keys) if keys else nullcontext(),
        images.lease(shard_mark(run.uri)) if images is not None else nullcontext(),
    ):
        if keys and remaining:
            tasks = model_tasks(run.config.sweep, cluster)
            look_at_load(run, budget)
            remaining = _worth_their_frozen_work(run, remaining, store, budget)
            watch.trials_chosen([trial.trial_id for trial in remaining], len(open_trials) - len(remaining))
            remaining = FrozenWork(run, store, tasks, budget, watch).of(remaining)
            _probe(run, remaining, tasks, budget, watch)
        _tune(run, remaining, budget, resources, watch)
        _conclude(run, still_to_score(run.uri, remaining), resources, watch)
    _leave_out(run, budget, watch)


def _probe(run: Run, remaining: Sequence[TrialConfig], tasks: TaskResources, budget: Budget, watch: Watcher) -> None:
    """The linear probes among `remaining`, as batched heads, while there is time beside the baseline."""
    groups = _probe_groups(run, not_ended(run.uri, remaining))
    started = time.monotonic()
    fail(run, run_probe_groups(run, groups, tasks, watch, time_for_others(run, remaining, budget)), watch)
    estimate = run.plan.estimate
    if groups and estimate is not None:
        ids = {trial.trial_id for group in groups for trial in group}
        expected = sweep_seconds([cost for cost in estimate.costs if cost.trial_id in ids], (), estimate.machines)
        budget.measured(expected, time.monotonic() - started)


def _probe_groups(run: Run, trials: Iterable[TrialConfig]) -> list[list[TrialConfig]]:
    """Linear probes whose features are kept, grouped by what they must have in common to train as one."""
    groups: dict[Hashable, list[TrialConfig]] = defaultdict(list)
    if run.config.activations.fuse_probes:
        num_blocks = {planned.trial_id: planned.num_blocks for planned in run.plan.trials}
        for trial in trials:
            source = source_of(run.plan.activations, trial.trial_id, num_blocks[trial.trial_id])
            if source is not None and can_fuse(trial):
                groups[fusion_key(trial)].append(trial)
    return list(groups.values())


def _worth_their_frozen_work(
    run: Run, remaining: Sequence[TrialConfig], store: ActivationStore, budget: Budget
) -> list[TrialConfig]:
    """`remaining` without what a budget has no time for; what only waits for its score stays."""
    if not budget.is_limited:
        return list(remaining)
    waiting = not_ended(run.uri, remaining)
    probes = {trial.trial_id for group in _probe_groups(run, waiting) for trial in group}
    sources = as_stored_now(run.plan.activations, run.manifest, store)
    kept = worth_their_frozen_work(run, waiting, probes, sources, budget)
    return [trial for trial in remaining if trial in kept or trial not in waiting]


def _tune(
    run: Run, remaining: Sequence[TrialConfig], budget: Budget, resources: TrialResources, watch: Watcher
) -> None:
    """Ray Tune over what has not ended and fits the budget; again while that leaves time, or where it breaks down."""
    failures = 0
    while open_trials := not_ended(run.uri, remaining):
        look_at_load(run, budget)
        chosen = within_budget(run, open_trials, budget)
        if not chosen:
            return
        from tlray.distributed.tune_trials import tune_trials

        watch.trials_chosen([trial.trial_id for trial in chosen], len(open_trials) - len(chosen))
        before = _epochs_done(run)
        try:
            tune_trials(run, [*chosen, *spare_trials(run, open_trials, chosen, budget)], budget, resources, watch)
            failures = 0
        except RuntimeError as error:
            # Tune gives up the whole sweep when Ray kills one trial's process for want of memory. The run folder
            # knows how far each trial is, so a new Tune goes on from there.
            failures = failures + 1 if _epochs_done(run) == before else 1
            if failures > run.config.sweep.max_failures:
                reason = str(error).splitlines()[0]
                raise TrialError(f"the sweep broke down: {reason}; `tlray resume {run.uri}` goes on") from error
            watch.sweep_broke(str(error).splitlines()[0])
        if budget.left() <= 0:
            return


def _leave_out(run: Run, budget: Budget, watch: Watcher) -> None:
    """Note and say what the budget had no room for."""
    left_out = [trial.trial_id for trial in not_ended(run.uri, run.trials)]
    if left_out or budget.dropped:
        budget.leave_out(left_out)
    for trial_id in left_out:
        watch.trial_dropped(trial_id)


def _epochs_done(run: Run) -> int:
    ids = [trial.trial_id for trial in run.trials]
    return sum(for_each(ids, lambda trial_id: load_progress(trial_uri(run.uri, trial_id)).epoch).values())


def _conclude(run: Run, trials: Sequence[TrialConfig], resources: TrialResources, watch: Watcher) -> None:
    waiting = {
        conclude_task.options(
            num_cpus=resources.cpus, num_gpus=resources.gpus_of(trial.trial_id), resources=dict(resources.custom)
        ).remote(run.uri, trial.trial_id, resources.threads): trial
        for trial in trials
    }
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        trial = waiting.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            fail(run, {trial.trial_id: error}, watch)
            continue
        append_result(run.uri, result)
        watch.trial_ended(result)
