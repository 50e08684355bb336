"""What one trial needs of memory and disk, worked out without training: the model runs once on torch's meta device.

    footprint = trial_footprint(trial, backbone, num_workers=1)
    footprint.memory_bytes                                     # of one worker

The formula, for each worker, with 4 bytes a number:

    weights      all parameters and buffers
    gradients    the parameters that train
    optimizer    2 x the parameters that train with adamw, 1 x with sgd and momentum, 0 x with sgd alone
    activations  images in the worker's batch x (what autograd keeps of one image + input and output of the layer
                 where they are largest); half of it in bfloat16 and float16

and on disk 3 checkpoints (the last, the best, the one being written) of trained parameters and optimizer state.
What a process takes before it trains, and the cache of decoded images, come on top: see PROCESS_BYTES. Two AdamW steps
at 224 pixels on a CPU, beyond the weights, estimated and measured: resnet18 with 16 images 598 and 637 MB, its linear
probe 109 and 91 MB, mobilenet_v3_small with 32 images 607 and 692 MB.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tlray.config import Recipe, TrialConfig
from tlray.models.backbone import Backbone
from tlray.models.freeze import freeze
from tlray.runs.budget.machines import MOST_ON_A_GPU
from tlray.training.loop import thaw_plan

PROCESS_BYTES = 900 * 2**20  # a worker process with torch, torchvision and Ray imported, before the first step
DRIVER_BYTES = 1500 * 2**20  # the two processes that Ray Train puts above the workers of a nested trial
NUM_CHECKPOINTS = 3
NUMBER_BYTES = 4
HALVES = ("bfloat16", "float16")
PROBE_BATCH = 2  # BatchNorm in training mode refuses a single image
CUDA_CONTEXT_BYTES = 600 * 2**20  # what CUDA and its libraries keep on a GPU for each process
HEAD_ROOM = 1.25  # over the formula: cudnn's workspaces, and what the allocator cannot use again


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes; the first four for each worker, `disk_bytes` for the trial."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    disk_bytes: int

    @property
    def memory_bytes(self) -> int:
        """On the device that trains, without the process itself."""
        return self.weights + self.gradients + self.optimizer + self.activations


def trial_footprint(trial: TrialConfig, backbone: Backbone, num_workers: int = 1) -> Footprint:
    """The trial's footprint while most of its blocks train; changes which of the backbone's parameters do."""
    recipe = trial.recipe
    freeze(backbone, thaw_plan(backbone, trial).most)
    parameters = list(backbone.model.parameters())
    trainable = NUMBER_BYTES * sum(p.numel() for p in parameters if p.requires_grad)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in backbone.model.buffers())
    optimizer = trainable * _optimizer_copies(recipe)
    images_per_worker = math.ceil(recipe.batch_size / num_workers)
    per_image = activation_bytes_per_image(backbone.model, backbone.preprocessing.input_size)
    return Footprint(
        weights=NUMBER_BYTES * sum(p.numel() for p in parameters) + buffers,
        gradients=trainable,
        optimizer=optimizer,
        activations=images_per_worker * (per_image // 2 if recipe.precision in HALVES else per_image),
        disk_bytes=NUM_CHECKPOINTS * (trainable + optimizer),
    )


def gpu_share(memory_bytes: int, gpu_bytes: int) -> float:
    """The share of a GPU that a worker of `memory_bytes` reserves: 1, 1/2, ... 1/8, rounded up; 1 where it needs all.

    Written with four digits and rounded down there, Ray's resolution, so that as many do fit.
    """
    needed = HEAD_ROOM * memory_bytes + CUDA_CONTEXT_BYTES
    fit = max(1, min(MOST_ON_A_GPU, int(gpu_bytes // needed)))
    return math.floor(10_000 / fit) / 10_000


def activation_bytes_per_image(model: nn.Module, input_size: tuple[int, int]) -> int:
    """Bytes for one image (3, height, width) float32 in a training step: what autograd keeps and the widest layer.

    What autograd keeps is exact for the model's own operations: the tensors that it saves are counted, each storage
    once, parameters left out. Attention counts as if its matrix were kept, which fused kernels avoid: an upper bound.
    """
    on_meta = copy.deepcopy(model).to("meta").train()
    own = {tensor.untyped_storage()._cdata for tensor in (*on_meta.parameters(), *on_meta.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}
    widest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given to another one
        return tensor

    def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal widest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        widest = max(widest, sum(tensor.nbytes for tensor in tensors))

    for module in on_meta.modules():
        if not list(module.children()):
            module.register_forward_hook(measure)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        on_meta(torch.empty(PROBE_BATCH, 3, *input_size, device="meta"))
    return (sum(storage.nbytes() for storage in kept.values()) + widest) // PROBE_BATCH


def _optimizer_copies(recipe: Recipe) -> int:
    if recipe.optimizer == "adamw":
        return 2
    return 1 if recipe.momentum > 0 else 0
