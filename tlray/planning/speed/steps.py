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

from tlray.catalogue.latency import device_name, processor_name
from tlray.config import DataConfig, Recipe, RunConfig, TrialConfig
from tlray.data.loader import load_draws
from tlray.data.manifest import Manifest
from tlray.data.read import image_reader
from tlray.models.backbone import Backbone
from tlray.models.freeze import freeze, parameter_groups, train_mode
from tlray.models.split import find_cut, frozen_prefix, trainable_suffix
from tlray.process.began import load
from tlray.process.device import arithmetic, fastest, given_device, num_gpus, start_seconds, wait
from tlray.process.threads import torch_threads
from tlray.runs.budget.costs import ReadSeconds, StepSeconds
from tlray.runs.budget.machines import Machines, cpus_of_a_pass_task
from tlray.storage.home_cache import remembered
from tlray.training.inputs import place
from tlray.training.loop import with_precision
from tlray.training.optim import make_optimizer, set_rate
from tlray.training.step import eval_step, train_step
from tlray.training.worker import Worker, local_worker

LARGEST_BATCH = 8  # images on a CPU; larger ones cost about as much an image there, and on a GPU far less
NUM_READ = 8  # images
GPU_CLOCK = 2e9  # cycles a second at most, of the sleep that a step is asked for in
STEPS_IN_A_ROW = {"cpu": 1, "cuda": 5}  # a GPU is given the next step while it computes


def measure_steps(
    backbone: Backbone,
    trial: TrialConfig,
    trainable_blocks: int,
    *,
    on_activations: bool,
    num_threads: int,
    gpus_per_worker: float | str | None = None,
) -> StepSeconds:
    """What an image costs while the last `trainable_blocks` train, on images or on what the others computed of them."""
    worker = local_worker(gpus_per_worker)
    recipe = with_precision(trial.recipe, worker.device)
    trial = trial.model_copy(update={"recipe": recipe})
    what = _what(backbone, trial, trainable_blocks, on_activations, num_threads, worker.device)

    def measure() -> dict[str, float]:
        deterministic = recipe.deterministic
        with torch_threads(num_threads), arithmetic(worker.device, recipe.precision, deterministic=deterministic):
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
    cpus, gpus = os.cpu_count() or 1, num_gpus()
    each_gpus = sweep.gpus_per_worker if isinstance(sweep.gpus_per_worker, float) else 1.0
    on_gpus = bool(gpus and each_gpus)
    most = int(cpus // (sweep.workers_per_trial * sweep.cpus_per_worker))
    if sweep.max_concurrent_trials is not None:
        most = min(most, sweep.max_concurrent_trials)
    concurrent = most
    if on_gpus:
        concurrent = min(most, int(gpus // (sweep.workers_per_trial * each_gpus)))
    pass_cpus = cpus_of_a_pass_task([(cpus, gpus)], on_gpus=on_gpus)
    return Machines(
        concurrent_trials=max(1, concurrent),
        pass_tasks=gpus if on_gpus else max(1, int(cpus // pass_cpus)),
        pass_threads=int(pass_cpus),
        on_gpus=on_gpus,
        gpus=gpus if on_gpus else 0,
        most_trials=max(1, most),
        load=load(),
        device_seconds=start_seconds(given_device(sweep.gpus_per_worker)),
        idle_cores=cpus >= 2 * max(1, concurrent) * sweep.workers_per_trial * sweep.cpus_per_worker,
    )


def _measure(
    backbone: Backbone, trial: TrialConfig, trainable_blocks: int, on_activations: bool, worker: Worker
) -> StepSeconds:
    recipe, device = trial.recipe, worker.device
    place(backbone, worker)
    freeze(backbone, trainable_blocks)
    batch = _batch_size(recipe, device)
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
    precision, in_a_row = recipe.precision, STEPS_IN_A_ROW[device.type]

    def step() -> object:
        return train_step(model, inputs, labels, criterion, optimizer, precision=precision)

    train = fastest(step, device, in_a_row)
    busy = _busy(step, train, device)
    backbone.model.eval()
    evaluate = fastest(lambda: eval_step(model, inputs, precision=precision), device, in_a_row)
    return StepSeconds(train=train / batch, evaluate=evaluate / batch, busy=busy)


def _busy(step: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Share of a step's `seconds` for which the GPU computes; 0 on a CPU.

    The step is asked for while the GPU sleeps, so that between the two marks it has all its work at hand. A profiler
    would tell it too, and slow down whatever this process does on the GPU afterwards.
    """
    if device.type == "cpu":
        return 0.0
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(GPU_CLOCK * 2 * seconds))
    begin.record()
    step()
    end.record()
    wait(device)
    return min(1.0, begin.elapsed_time(end) / 1000 / seconds)


def _batch_size(recipe: Recipe, device: torch.device) -> int:
    """Of a measured step."""
    return recipe.batch_size if device.type == "cuda" else min(LARGEST_BATCH, recipe.batch_size)


def _what(
    backbone: Backbone,
    trial: TrialConfig,
    trainable_blocks: int,
    on_activations: bool,
    num_threads: int,
    device: torch.device,
) -> dict[str, Any]:
    """All that the seconds depend on."""
    recipe = trial.recipe
    return {
        "backbone": backbone.id,
        "options": trial.backbone.options,
        "size": backbone.preprocessing.input_size,
        "trainable_blocks": trainable_blocks,
        "on": "activations" if on_activations else "images",
        "batch": _batch_size(recipe, device),
        "optimizer": recipe.optimizer,
        "precision": recipe.precision,
        "freeze_bn": recipe.freeze_bn,
        "device": device_name() if device.type == "cuda" else processor_name(),
        "deterministic": recipe.deterministic,
        "threads": num_threads,
        "torch": torch.__version__,
    }
