"""A model and its batches on the worker's device, as convolutions and tensor cores like them."""

import torch

from tlray.data.batch import Batch, Streams
from tlray.data.transforms import normalise
from tlray.models.backbone import Backbone
from tlray.process.device import PRECISIONS
from tlray.training.worker import Worker


def place(backbone: Backbone, worker: Worker) -> None:
    """Move the model to the worker's device, channels last: convolutions on CPUs and on tensor cores are faster so.

    `python -m benchmarks.memory_format` measures by how much.
    """
    backbone.model.to(worker.device).to(memory_format=torch.channels_last)


def model_inputs(
    batch: Batch, streams: Streams, worker: Worker, precision: str = "float32"
) -> tuple[torch.Tensor, ...]:
    """The batch on the worker's device, four-dimensional tensors channels last; images are normalised, in float32."""
    inputs = tuple(tensor.to(worker.device, non_blocking=True) for tensor in batch.inputs)
    if streams.preprocessing is not None:
        return as_inputs(tuple(normalise(images, streams.preprocessing) for images in inputs), "float32")
    return as_inputs(inputs, precision)


def as_inputs(values: tuple[torch.Tensor, ...], precision: str) -> tuple[torch.Tensor, ...]:
    """Stored activations as the blocks behind them take them.

    Those of convolutions in the precision of the training, in which they would have come out of the block before;
    others, the sums that transformer blocks add to, in float32, as autocast keeps those.
    """
    return tuple(
        value.to(PRECISIONS[precision], memory_format=torch.channels_last) if value.ndim == 4 else value.float()
        for value in values
    )
