"""Seconds of one trial, put together from what its images and steps were measured to take. No torch here.

seconds = epoch_seconds(counts, step, images, again=True) + ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tlray.config import RunConfig, TrialConfig
from tlray.runs.stopping import expected_epochs

CHECKPOINT_SECONDS = 0.05  # of an epoch: its checkpoint, its metrics, its report


@dataclass(frozen=True)
class StepSeconds:
    """Seconds for one image, without reading or decoding it."""

    train: float
    evaluate: float
    busy: float = 0.0  # share of a training step for which a GPU computes; 0: not known


@dataclass(frozen=True)
class ReadSeconds:
    """Seconds until one image is ready for a batch."""

    first: float  # read and decoded
    again: float  # in a later epoch, where decoded images are kept; else as the first time


@dataclass(frozen=True)
class Phase:
    """Epochs of a trial that train equally many blocks."""

    epochs: int
    step: StepSeconds
    read: ReadSeconds  # of images, or of activations


def trial_seconds(
    trial: TrialConfig, phases: Sequence[Phase], num_images: dict[str, int], config: RunConfig, *, overlapped: bool
) -> float:
    """One trial alone. `overlapped`: images are made ready while it trains, on a GPU or on cores beside it."""

    def each(read: float, step: float) -> float:
        return _each(read, step, config, overlapped)

    total, num_epochs = 0.0, 0
    for phase in phases:
        for epoch in range(phase.epochs):
            read = phase.read.first if epoch == 0 else phase.read.again
            total += num_images["train"] * each(read, phase.step.train)
            total += num_images["val"] * each(read, phase.step.evaluate) + CHECKPOINT_SECONDS
        num_epochs += phase.epochs
    if not trial.is_baseline:
        total *= expected_epochs(trial, config.sweep) / num_epochs
    return total + score_seconds(phases, num_images, config, overlapped=overlapped)


def score_seconds(phases: Sequence[Phase], num_images: dict[str, int], config: RunConfig, *, overlapped: bool) -> float:
    """The test images once."""
    last = phases[-1]
    return num_images["test"] * _each(last.read.first, last.step.evaluate, config, overlapped)


def _each(read: float, step: float, config: RunConfig, overlapped: bool) -> float:
    return max(read / config.data.num_threads, step) if overlapped else read + step
