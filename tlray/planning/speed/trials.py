"""What each planned trial costs: its steps and its reading timed on the real backbone and on images of the run.

timed = time_trials(config, manifest, backbone, trials, sources)
cost = trial_cost(config, trial, timed[trial.trial_id], sources, gather, num_images)
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tlray.activations.planned import ActivationSource, source_of
from tlray.config import RunConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.models.backbone import Backbone
from tlray.models.freeze import blocks_by_epoch
from tlray.planning.speed.solving import measure_solution
from tlray.planning.speed.steps import measure_read, measure_steps
from tlray.process.device import given_device
from tlray.runs.budget.costs import Phase, ReadSeconds, StepSeconds, score_seconds, trial_seconds
from tlray.runs.budget.estimate import TrialCost
from tlray.runs.budget.machines import MOST_ON_A_GPU
from tlray.training.fusion import can_fuse, fusion_key
from tlray.training.solved_probe import linear_head

WASTED = 0.25  # of a trial, for which no further one is started


@dataclass(frozen=True)
class TimedTrial:
    """A trial's epochs by what is frozen in them: (frozen blocks, epochs, step on images or on activations)."""

    phases: tuple[tuple[int, int, StepSeconds], ...]
    read: ReadSeconds  # of images
    solution: float = 0.0  # of a probe that is solved, without its features


def time_trials(
    config: RunConfig,
    manifest: Manifest,
    backbone: Backbone,
    trials: Sequence[TrialConfig],
    sources: Sequence[ActivationSource],
) -> dict[str, TimedTrial]:
    """All `trials` of one backbone, by their ids; equal ones are measured once. The backbone is trained on noise."""
    reads: dict[str, ReadSeconds] = {}
    timed: dict[str, TimedTrial] = {}
    threads = max(1, int(config.sweep.cpus_per_worker))
    for trial in trials:
        augmentation = trial.recipe.augmentation
        if augmentation not in reads:
            reads[augmentation] = measure_read(manifest, backbone, config.data, augmentation)
        phases = []
        for trainable, epochs in Counter(blocks_by_epoch(trial.strategy, backbone, trial.epochs)).items():
            num_frozen = len(backbone.blocks) - trainable
            on_activations = source_of(sources, trial.trial_id, num_frozen) is not None
            step = measure_steps(
                backbone,
                trial,
                trainable,
                on_activations=on_activations,
                num_threads=threads,
                gpus_per_worker=config.sweep.gpus_per_worker,
            )
            phases.append((num_frozen, epochs, step))
        solution = 0.0
        head = linear_head(backbone) if trial.is_solved else None
        if head is not None:
            width = head.weight.shape[1]
            num_train, num_classes = len(manifest.split("train")), len(manifest.classes)
            solution = measure_solution(num_train, width, num_classes, config.sweep.gpus_per_worker, threads)
        timed[trial.trial_id] = TimedTrial(tuple(phases), reads[augmentation], solution)
    return timed


def trials_that_pay(timed: TimedTrial) -> int:
    """How many such trials keep a GPU busy, one process each; more of them only wait for each other.

    Processes take turns on it, so that two of which each uses 60 % fill it, and a third adds nothing.
    """
    busiest = max(step.busy for _, _, step in timed.phases)
    return max(1, math.ceil(1 / busiest - WASTED)) if busiest > 0 else MOST_ON_A_GPU


def trial_cost(
    config: RunConfig,
    trial: TrialConfig,
    timed: TimedTrial,
    sources: Sequence[ActivationSource],
    gather: float,
    num_images: dict[str, int],
) -> TrialCost:
    """The trial's seconds where `sources` say what is kept; `gather`: seconds a byte of activations."""
    phases, on_features = [], False
    for num_frozen, epochs, step in timed.phases:
        source = source_of(sources, trial.trial_id, num_frozen)
        read = timed.read
        if source is not None:
            seconds = source.bytes_per_image * gather
            read, on_features = ReadSeconds(first=seconds, again=seconds), can_fuse(trial)
        phases.append(Phase(epochs, step, read))
    fused = on_features and config.activations.fuse_probes
    overlapped = trial_seconds(trial, phases, num_images, config, overlapped=True) + timed.solution
    sequential = trial_seconds(trial, phases, num_images, config, overlapped=False) + timed.solution
    return TrialCost(
        trial_id=trial.trial_id,
        seconds=overlapped if given_device(config.sweep.gpus_per_worker).type == "cuda" else sequential,
        overlapped_seconds=overlapped,
        group=(trial.trial_id if trial.is_solved else repr(fusion_key(trial))) if fused else None,
        score_seconds=score_seconds(phases, num_images, config, overlapped=False),
    )
