"""A trial of two workers that is killed inside an epoch goes on from the step that both had kept."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from image_splits import split_folders

from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.manifest import make_manifest
from tlray.runs.trials import read_trial_result
from tlray.training import loop
from tlray.training.trial import load_trained, manifest_images, run_trial, trial_folder
from tlray.training.worker import Worker

WORKERS = 2
STEPS = math.ceil(18 / 4)  # of an epoch: 18 images, 4 a batch
KILLED_IN = STEPS + 4  # the fourth batch of the second epoch

# BatchNorm trains, so each worker's statistics differ until the epoch ends
TRIAL = TrialConfig(
    trial_id="t",
    backbone=BackboneConfig(id="timm/test_resnet", weights="none", input_size=64),
    strategy=StrategyConfig(strategy="full"),
    recipe=Recipe(epochs=3, batch_size=4, lr=0.003, augmentation="light", freeze_bn=False, checkpoint_steps=2),
    seed=0,
)


def train(rank: int, data: DataConfig, group: Path, folder: Path, kill_in: int | None = None) -> None:
    """One of the workers, which joins the others through the file `group`; the last one kills itself in a batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=WORKERS)
    step, num_steps = loop.train_step, 0

    def killed_in_the_batch(*arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal num_steps
        num_steps += 1
        if num_steps == kill_in and rank == WORKERS - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments, **keywords)

    def sum_across(tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def data_parallel(model: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    loop.train_step = killed_in_the_batch  # type: ignore[assignment]
    worker = Worker(rank=rank, world_size=WORKERS, wrap=data_parallel, sum_across=sum_across)
    run_trial(TRIAL, str(folder), worker, manifest_images(make_manifest(data), data), lambda metrics: None)
    if folder.name == "resumed" and rank == 0:
        (folder / "steps").write_text(str(num_steps))


def start(*arguments: object) -> None:
    torch.multiprocessing.spawn(train, arguments, nprocs=WORKERS)


def test_a_killed_trial_of_two_workers_ends_bit_for_bit_like_an_undisturbed_one(
    image_folder: Path, tmp_path: Path
) -> None:
    data = DataConfig(**split_folders(image_folder, tmp_path / "splits", val=3, test=3))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(data, tmp_path / "group-0", whole)
    with pytest.raises((torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException)):
        start(data, tmp_path / "group-1", killed, KILLED_IN)
    done = trial_folder(str(killed), "t").load_progress()
    assert (done.epoch, done.step) == (1, 2)
    assert len(list(killed.rglob("*-step-000002-worker-*"))) == WORKERS

    resumed = killed.rename(tmp_path / "resumed")
    start(data, tmp_path / "group-2", resumed)
    assert int((resumed / "steps").read_text()) == 2 * STEPS - 2
    assert not list(resumed.rglob("*-step-*"))
    ours, theirs = read_trial_result(str(resumed), "t"), read_trial_result(str(whole), "t")
    assert ours is not None
    assert theirs is not None
    differs = {"seconds": 0, "peak_memory_bytes": 0, "checkpoint": None}
    assert ours.model_copy(update=differs) == theirs.model_copy(update=differs)
    weights, expected = (load_trained(TRIAL, str(folder), 3).model.state_dict() for folder in (resumed, whole))
    assert all(weights[key].equal(expected[key]) for key in expected)
