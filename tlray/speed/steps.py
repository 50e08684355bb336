"""How long one image takes in a step of training and of evaluation, measured on this machine with made-up images.

    seconds = measure_steps(backbone, trial, trainable_blocks, on_activations=False, num_threads=1)

The model is trained on noise with a learning rate of zero, and its BatchNorm statistics move: measure last. What was
measured once is remembered in ~/.cache/tlray/steps, so that planning again costs nothing.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from tlray.backbone import Backbone
from tlray.budget.costs import ReadSeconds, StepSeconds
from tlray.budget.machines import Machines, cpus_of_a_pass_task
from tlray.config import DataConfig, RunConfig, TrialConfig
from tlray.data.loader import load_draws
from tlray.data.manifest import Manifest
from tlray.data.read import image_reader
from tlray.freeze import freeze, parameter_groups, train_mode
from tlray.home_cache import remembered
from tlray.latency import device_name
from tlray.split import find_cut, frozen_prefix, trainable_suffix
from tlray.threads import torch_threads
from tlray.training.loop import place
from tlray.training.optim import make_optimizer, set_rate
from tlray.training.step import eval_step, train_step
from tlray.training.worker import Worker, local_worker

LARGEST_BATCH = 8  # images; larger ones cost about as much an image
NUM_READ = 8  # images
NUM_STEPS = 3  # of which the fastest counts: other work on the machine only ever adds
LONG_STEP = 0.3  # seconds; one of a step that takes longer is enough


def measure_steps(
    backbone: Backbone, trial: TrialConfig, trainable_blocks: int, *, on_activations: bool, num_threads: int
) -> StepSeconds:
    """What an image costs while the last `trainable_blocks` train, on images or on what the others computed of them."""
    worker = local_worker()
    what = _what(backbone, trial, trainable_blocks, on_activations, num_threads)

    def measure() -> dict[str, float]:
        with torch_threads(num_threads):
            return asdict(_measure(backbone, trial, trainable_blocks, on_activations, worker))

    return StepSeconds(**remembered("steps", what, measure))


def measure_read(manifest: Manifest, backbone: Backbone, data: DataConfig, augmentation: str) -> ReadSeconds:
    """Of training images as a trial reads them: from where they lie, and from the decoded ones in memory."""
    some, read = list(manifest.split("train")[:NUM_READ]), image_reader(data)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        view = 0 if augmentation == "none" else 1
        for _image in load_draws(some, backbone.preprocessing, augmentation, view, num_threads=1, read=read):
            pass
        seconds.append((time.perf_counter() - started) / len(some))
    pixels = sum(3 * image.width * image.height for image in some) / len(some)
    fits = len(manifest.images) * pixels <= data.memory_cache_mb * 2**20
    return ReadSeconds(first=seconds[0], again=seconds[1] if fits else seconds[0])


def this_machine(config: RunConfig) -> Machines:
    """What works on a run where no cluster has been asked: this machine's CPUs, or its GPUs."""
    sweep = config.sweep
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    each_gpus = sweep.gpus_per_worker if isinstance(sweep.gpus_per_worker, float) else 1.0
    on_gpus = bool(gpus and each_gpus)
    concurrent = int(cpus // (sweep.workers_per_trial * sweep.cpus_per_worker))
    if on_gpus:
        concurrent = min(concurrent, int(gpus // (sweep.workers_per_trial * each_gpus)))
    if sweep.max_concurrent_trials is not None:
        concurrent = min(concurrent, sweep.max_concurrent_trials)
    pass_cpus = cpus_of_a_pass_task([(cpus, gpus)], on_gpus=on_gpus)
    return Machines(
        concurrent_trials=max(1, concurrent),
        pass_tasks=gpus if on_gpus else max(1, int(cpus // pass_cpus)),
        pass_threads=int(pass_cpus),
        on_gpus=on_gpus,
        idle_cores=cpus >= 2 * max(1, concurrent) * sweep.workers_per_trial * sweep.cpus_per_worker,
    )


def _measure(
    backbone: Backbone, trial: TrialConfig, trainable_blocks: int, on_activations: bool, worker: Worker
) -> StepSeconds:
    recipe = trial.recipe
    place(backbone, worker)
    freeze(backbone, trainable_blocks)
    batch = min(LARGEST_BATCH, recipe.batch_size)
    images = torch.randn(batch, 3, *backbone.preprocessing.input_size, device=worker.device)
    inputs: tuple[torch.Tensor, ...] = (images.contiguous(memory_format=torch.channels_last),)
    model: nn.Module = backbone.model
    if on_activations:
        num_frozen = len(backbone.blocks) - trainable_blocks
        with torch.no_grad():
            (inputs,) = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])(inputs[0])
        model = trainable_suffix(backbone, num_frozen)
    labels = torch.zeros(batch, dtype=torch.int64, device=worker.device)
    optimizer = make_optimizer(parameter_groups(backbone), recipe)
    criterion = nn.CrossEntropyLoss(reduction="sum")
    set_rate(optimizer, 0.0)
    train_mode(backbone, trainable_blocks, recipe.freeze_bn)
    train = _fastest(
        lambda: train_step(model, inputs, labels, criterion, optimizer, precision=recipe.precision), worker.device
    )
    backbone.model.eval()
    evaluate = _fastest(lambda: eval_step(model, inputs, precision=recipe.precision), worker.device)
    return StepSeconds(train=train / batch, evaluate=evaluate / batch)


def _fastest(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that is not counted; of a long step one is counted."""
    warm = _seconds_of(step, device)
    return min(_seconds_of(step, device) for _ in range(1 if warm > LONG_STEP else NUM_STEPS))


def _seconds_of(step: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _what(
    backbone: Backbone, trial: TrialConfig, trainable_blocks: int, on_activations: bool, num_threads: int
) -> dict[str, Any]:
    """All that the seconds depend on."""
    recipe = trial.recipe
    return {
        "backbone": backbone.id,
        "options": trial.backbone.options,
        "size": backbone.preprocessing.input_size,
        "trainable_blocks": trainable_blocks,
        "on": "activations" if on_activations else "images",
        "batch": min(LARGEST_BATCH, recipe.batch_size),
        "optimizer": recipe.optimizer,
        "precision": recipe.precision,
        "freeze_bn": recipe.freeze_bn,
        "device": device_name(),
        "threads": num_threads,
        "torch": torch.__version__,
    }
