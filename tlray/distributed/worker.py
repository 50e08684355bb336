"""A trial in a Ray process: find out which worker this is, then call `run_trial` like everybody else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from torch import nn

from tlray import storage
from tlray.distributed.images import worker_images
from tlray.distributed.tasks import load_trial, take_given_gpu
from tlray.errors import TlrayError, UnreachableError
from tlray.process.device import given_device
from tlray.runs.trials import write_trial_result
from tlray.training.epoch import Report
from tlray.training.record import failed_result
from tlray.training.trial import release_memory, run_trial
from tlray.training.worker import Worker, local_worker


def train_in_actor(config: dict[str, Any]) -> None:
    """A trial of one worker, in the Tune actor."""
    _run(config["trial"], local_worker, lambda metrics: tune.report(dataclasses.asdict(metrics)))


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop for each worker of a nested trial; every worker reports, Ray Train passes on the first's."""
    _run(config["trial"], _train_worker, lambda metrics: ray.train.report(dataclasses.asdict(metrics)))


def _train_worker() -> Worker:
    context = ray.train.get_context()
    return Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=_given_device(),
        wrap=_data_parallel if context.get_world_size() > 1 else lambda model: model,
        sum_across=_sum_across if context.get_world_size() > 1 else lambda tensor: tensor,
    )


def _given_device() -> torch.device:
    """Ray Train names the first GPU of the node to a worker that was given none."""
    return ray.train.torch.get_device() if given_device().type == "cuda" else given_device()


def _run(settings: dict[str, Any], worker_of: Callable[[], Worker], report: Report) -> None:
    """A failure with a known reason is a result, recorded here: starting the trial again would not help it."""
    torch.set_num_threads(settings["threads"])
    run_uri = settings["run_uri"]
    trial = load_trial(run_uri, settings["trial_id"])
    storage.be_patient()
    worker = Worker()  # on the CPU, until the GPU that Ray has reserved is known to be there
    try:
        take_given_gpu()
        worker = worker_of()
        run_trial(trial, run_uri, worker, worker_images(run_uri), report)
    except UnreachableError:
        raise  # it goes on from its checkpoint as soon as the store is back
    except (TlrayError, torch.OutOfMemoryError) as error:
        reason = str(error)
        if isinstance(error, torch.OutOfMemoryError):
            reason = (
                f"out of GPU memory: lower batch_size ({trial.recipe.batch_size}) or input_size, "
                "or raise sweep.gpus_per_worker where trials share a GPU"
            )
        if worker.leads:
            passes = isinstance(error, TlrayError) and error.may_pass
            write_trial_result(run_uri, failed_result(trial, run_uri, reason, may_pass=passes))
    finally:
        release_memory()


def _data_parallel(model: nn.Module) -> nn.Module:
    """DistributedDataParallel over the parameters that train now; BatchNorm statistics are joined once an epoch.

    On GPUs BatchNorm normalises over the images of all workers. PyTorch has no such module for CPUs: there each
    worker normalises with its own share.
    """
    if next(model.parameters()).is_cuda:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return ray.train.torch.prepare_model(
        model, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
    )


def _sum_across(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the workers; nccl adds on the GPU only, so the tensor travels through it."""
    device = _given_device()
    total = tensor.to(device, copy=True)
    torch.distributed.all_reduce(total)
    return total.to(tensor.device)
