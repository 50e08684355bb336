"""Epochs are committed by a thread while the next one trains; an epoch is reported when it is committed.

    with Commits(report, behind=True) as commits:
        commits.submit(partial(folder.save, progress, frozen_hash=...), metrics)      # waits for the one before
        commits.poll()                                     # between batches: reports what has been committed

A checkpoint leaves the device as a copy in pinned memory; hashing and writing it would take longer than a short epoch.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from tlray.data.to_device import host_tensor
from tlray.training.epoch import EpochMetrics, Report


class Commits:
    """At most one commit under way. Workers that train together commit at once: they report together."""

    def __init__(self, report: Report, *, behind: bool) -> None:
        self._report, self._behind = report, behind
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tlray-commit")
        self._pending: tuple[Future[None], EpochMetrics] | None = None

    def __enter__(self) -> "Commits":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has been trained is committed, whatever ends the training; a process that is to end reports no more."""
        try:
            if error is None or isinstance(error, Exception):
                self.settle()
        finally:
            self._pool.shutdown(wait=True)

    def submit(self, commit: Callable[[], None], metrics: EpochMetrics) -> None:
        self.settle()
        self._pending = self._pool.submit(commit), metrics
        if not self._behind:
            self.settle()

    def poll(self) -> None:
        """Report the epoch whose commit has ended, if one has."""
        if self._pending is not None and self._pending[0].done():
            self.settle()

    def settle(self) -> None:
        """Wait for the commit under way and report it; what went wrong with it is raised here."""
        if self._pending is None:
            return
        (future, metrics), self._pending = self._pending, None
        future.result()
        self._report(metrics)


def snapshot(tensors: dict[str, torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
    """Copies of tensors as they are now, on the host; to be called by who needs them, for it waits for the copying."""
    copies = {name: _to_host(tensor.detach()) for name, tensor in tensors.items()}
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return lambda: copies
    done = torch.cuda.Event()
    done.record()

    def waited() -> dict[str, torch.Tensor]:
        done.synchronize()
        return copies

    return waited


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    place = host_tensor(tuple(tensor.shape), tensor.dtype, tensor.device)
    return place.copy_(tensor.contiguous(), non_blocking=True)
