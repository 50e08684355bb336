"""What Ray Tune runs for a trial. The driver of the sweep names these functions and so imports no torch for them.

A trial of one worker trains in the Tune actor itself; one of several starts a Ray Train run and passes its reports on.
"""

import os
from typing import Any

from tlray import storage
from tlray.distributed.resources import TrialResources

SECONDS_TO_STOP = "20"


def in_process_trial(config: dict[str, Any]) -> None:
    """Tune's trainable for trials of one worker: trains in the Tune actor, which the next trial reuses.

    A trial that is stopped gives back its loaders and memory first, which takes longer than Tune's own 2 seconds where
    the machine or the store is slow. After that time the next trial gets another actor.
    """
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", SECONDS_TO_STOP)
    from tlray.distributed.worker import train_in_actor

    train_in_actor(config)


def nested_trial(config: dict[str, Any], *, resources: TrialResources, max_failures: int) -> None:
    """Tune's trainable for trials with workers of their own. Checkpoints are the trial's, not Ray Train's.

    TuneReportCallback shows Tune every epoch: `fit()` alone would show it the last one, and ASHA nothing to stop on.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from tlray.distributed.worker import train_worker

    settings = config["trial"]
    # Given as a filesystem, so that Ray Train reaches S3 by the same endpoint and credentials as everything else.
    filesystem, folder = storage.pyarrow_filesystem(storage.join(settings["run_uri"], "ray"))
    TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.worker(settings["trial_id"]),
        ),
        run_config=ray.train.RunConfig(
            name=settings["trial_id"],
            storage_path=folder,
            storage_filesystem=filesystem,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # typed for the older Ray Train
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    ).fit()
