"""The winner's second training as a task of the cluster, after the sweep and before the exports.

refit_on_cluster(run, say)
"""

from collections.abc import Callable

import ray

from tlray import storage
from tlray.distributed.cluster import cluster_summary, connect
from tlray.distributed.errors import answer
from tlray.distributed.resources import trial_resources
from tlray.distributed.tasks import take_given_gpu
from tlray.errors import TlrayError
from tlray.runs.notes import leave_note
from tlray.runs.prepare import Run, load_run
from tlray.runs.refit import wanted_refit


def refit_on_cluster(run: Run, say: Callable[[str], None]) -> None:
    """Train the winner again where `export.refit` asks for it and it is not done yet; a resume goes on with it.

    One that fails for a reason of its own leaves a note, and the winner is exported as it is.
    """
    trial_id = wanted_refit(run.uri, run.config)
    if trial_id is None:
        return
    say(f"refit: {trial_id} is trained on the training and validation images")
    connect()
    shares = {planned.trial_id: planned.gpu_share for planned in run.plan.trials}
    resources = trial_resources(run.config, cluster_summary(run.config.cluster), shares)
    task = refit_task.options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus_of(trial_id),
        resources=dict(resources.custom),
        max_retries=run.config.sweep.max_failures,
    )
    try:
        remedy = f"`tlray resume {run.uri}` goes on with it"
        answer(task.remote(run.uri, trial_id, resources.threads), f"the refit of {trial_id}", remedy)
    except TlrayError as error:
        if error.may_pass:
            raise
        leave_note(run.uri, f"the refit of {trial_id} failed: {error}; the trial is exported as it is")


@ray.remote
def refit_task(run_uri: str, trial_id: str, num_threads: int) -> None:
    """Trains it, or goes on training it; its row is in its folder."""
    storage.be_patient()
    import torch

    from tlray.training.refit import refit_trial
    from tlray.training.worker import local_worker

    torch.set_num_threads(num_threads)
    take_given_gpu()
    refit_trial(load_run(run_uri), trial_id, local_worker(), lambda metrics: None)
