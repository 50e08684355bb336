"""The optimisation steps of an epoch of stacked heads: on batches that stream in, or on rows that the device holds.

    loss_sums = streamed_epoch(heads, optimizer, recipes, streams, worker, epoch, factors)      # (T,)
    loss_sums = HeldSteps(heads, optimizer, recipes).epoch(streams.held(epoch), factors)

A step of heads is a few small kernels, which a GPU ends before the host has asked for the next one. Where it holds the
rows too, the host asks once: a step is captured as a CUDA graph that counts its own steps, and is then replayed.
"""

from collections.abc import Sequence
from contextlib import closing

import torch

from tlray.config import Recipe
from tlray.data.batch import HeldEpoch, Streams
from tlray.data.to_device import on_device
from tlray.training.inputs import as_inputs, model_inputs
from tlray.training.probe_optim import Factors, StackedOptimizer
from tlray.training.probes import StackedHeads, loss_by_row
from tlray.training.worker import Worker

WARM_STEPS = 3  # before a capture: what kernels and libraries prepare in their first calls may not be captured
WORTH_CAPTURING = 8  # steps of one size in an epoch; a capture takes as long as some steps


def streamed_epoch(
    heads: StackedHeads,
    optimizer: StackedOptimizer,
    recipes: Sequence[Recipe],
    streams: Streams,
    worker: Worker,
    epoch: int,
    factors: Factors,
) -> torch.Tensor:
    """One pass over the training images -> each row's sum of losses (T,)."""
    precision, smoothing = recipes[0].precision, _smoothing(recipes, worker.device)
    loss_sums = torch.zeros(len(recipes), device=worker.device)
    with closing(on_device(streams.train(epoch), worker.device)) as batches:
        for step, batch in enumerate(batches):
            logits = heads.logits(model_inputs(batch, streams, worker, precision), precision)
            losses = loss_by_row(logits, batch.labels.to(worker.device), smoothing)
            gradients = heads.gradients(losses / batch.num_global)
            optimizer.step(heads.parameters, gradients, factors.at(step))
            loss_sums += losses.detach()
    return loss_sums


class HeldSteps:
    """The steps over held rows; one object for as long as the stacks keep their rows."""

    def __init__(self, heads: StackedHeads, optimizer: StackedOptimizer, recipes: Sequence[Recipe]) -> None:
        self._heads, self._optimizer = heads, optimizer
        self._device = next(iter(heads.parameters.values())).device
        self._precision, self._smoothing = recipes[0].precision, _smoothing(recipes, self._device)
        self._loss_sums = torch.zeros(len(recipes), device=self._device)
        self._step = torch.zeros((), dtype=torch.int64, device=self._device)  # of the epoch
        self._begin = torch.zeros((), dtype=torch.int64, device=self._device)  # where in the order its rows begin
        self._held: HeldEpoch | None = None
        self._factors: Factors | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by the size of a batch

    def epoch(self, held: HeldEpoch, factors: Factors) -> torch.Tensor:
        """One pass over the training images -> each row's sum of losses (T,)."""
        self._begin_epoch(held, factors)
        for counter in (self._loss_sums, self._step, self._begin):
            counter.zero_()
        done: dict[int, int] = {}
        for size in held.sizes:
            count = done[size] = done.get(size, 0) + 1
            graph = self._graphs.get(size)
            pays = self._device.type == "cuda" and held.sizes.count(size) >= WORTH_CAPTURING
            if graph is None and pays and count > WARM_STEPS:
                graph = self._graphs[size] = self._captured(size)
            if graph is not None:
                graph.replay()
            else:
                self._one(size)
        return self._loss_sums

    def _begin_epoch(self, held: HeldEpoch, factors: Factors) -> None:
        """Graphs read the tensors that they were captured with, so that a new order and new rates are copied there."""
        if self._held is None or self._factors is None:
            self._held, self._factors = held, factors
            return
        assert all(mine is theirs for mine, theirs in zip(self._held.values, held.values, strict=True))
        self._held.order.copy_(held.order)
        self._factors.overwrite(factors)

    def _captured(self, size: int) -> torch.cuda.CUDAGraph:
        """One step as a graph; capturing runs nothing."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._one(size)
        return graph

    def _one(self, size: int) -> None:
        """One step on the next `size` rows."""
        assert self._held is not None
        assert self._factors is not None
        places = self._begin + torch.arange(size, device=self._device)
        rows = self._held.order.index_select(0, places)
        inputs = as_inputs(self._held.at(rows), self._precision)
        losses = loss_by_row(
            self._heads.logits(inputs, self._precision), self._held.labels.index_select(0, rows), self._smoothing
        )
        gradients = self._heads.gradients(losses / size)
        self._optimizer.step(self._heads.parameters, gradients, self._factors.at(self._step))
        self._loss_sums += losses.detach()
        self._step += 1
        self._begin += size


def _smoothing(recipes: Sequence[Recipe], device: torch.device) -> torch.Tensor | None:
    if all(recipe.label_smoothing == 0 for recipe in recipes):
        return None
    return torch.tensor([recipe.label_smoothing for recipe in recipes], device=device)
