"""What tlray itself does with the same work: trials by its own loop, stacked heads, the activation pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_parts.work import NUM_CLASSES, noise_streams, scratch, trial
from tlray.activations.chunks import list_chunks
from tlray.activations.compute import PassSettings, compute_chunks, decoders
from tlray.activations.location import open_store
from tlray.activations.planned import source_of
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.data.batch import Batch, HeldEpoch, Streams
from tlray.data.read import image_reader
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze
from tlray.models.split import trainable_suffix
from tlray.planning.planner import plan_run
from tlray.planning.speed.steps import measure_steps
from tlray.runs.plan import PlannedRun
from tlray.training import loop
from tlray.training.activations import activation_streams
from tlray.training.checkpoint import TrialFolder
from tlray.training.commits import Commits
from tlray.training.epoch import EpochMetrics
from tlray.training.inputs import place
from tlray.training.loop import Feed, fit, thaw_plan
from tlray.training.probe_checkpoint import GroupFolder
from tlray.training.probe_loop import fit_group
from tlray.training.worker import Worker


@dataclass
class Trained:
    """What a training came to."""

    epochs: list[EpochMetrics] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)  # seconds of the training thread: a snapshot, a commit, and so on

    @property
    def speed(self) -> float:
        """Images a second of the best epoch after the first, which is cold."""
        return max(metrics.images_per_second for metrics in self.epochs[1:])

    @property
    def stall(self) -> float:
        """Share of the epochs after the first, which takes its pinned memory from the system."""
        return sum(self.stalls[2:]) / sum(metrics.seconds for metrics in self.epochs[1:])


def full(name: str, batch: int, steps: int, device: torch.device, **recipe: Any) -> Trained:
    """Three epochs on noise by tlray's defaults, but for what `recipe` says."""
    one = trial(name, epochs=3, batch_size=batch, **recipe)
    backbone = build_backbone(one.backbone, NUM_CLASSES, seed=0)
    streams = noise_streams(backbone.preprocessing, batch, steps, device)
    return _fit(backbone, one, lambda blocks: Feed(streams, backbone.model), device)


def live_probe(name: str, batch: int, steps: int, device: torch.device) -> Trained:
    """A linear probe that pushes every image through the frozen network again."""
    one = trial(name, "linear_probe", epochs=3, batch_size=batch)
    backbone = build_backbone(one.backbone, NUM_CLASSES, seed=0)
    streams = noise_streams(backbone.preprocessing, batch, steps, device)
    return _fit(backbone, one, lambda blocks: Feed(streams, backbone.model), device)


def _fit(backbone: Backbone, one: TrialConfig, feed: Callable[[int], Feed], device: torch.device) -> Trained:
    trained = Trained()

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                trained.stalls.append(time.perf_counter() - started)

        return wrapped

    snapshot, submit = loop.snapshot, Commits.submit
    loop.snapshot, Commits.submit = timed(snapshot), timed(submit)  # type: ignore[method-assign]
    try:
        with scratch() as folder:
            fit(backbone, feed, one, Worker(device=device), TrialFolder(str(folder)), trained.epochs.append)
    finally:
        loop.snapshot, Commits.submit = snapshot, submit  # type: ignore[method-assign]
    return trained


def heads_speed(name: str, heads: int, features: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Images a second of all heads together, of stacked heads on features (N, D) that the device holds."""
    device = features.device
    trials = [
        trial(name, "linear_probe", epochs=3, batch_size=batch, lr=1e-3 * (1 + index / heads), augmentation="none")
        for index in range(heads)
    ]
    trials = [one.model_copy(update={"trial_id": f"t{index}"}) for index, one in enumerate(trials)]
    backbone = build_backbone(trials[0].backbone, NUM_CLASSES, seed=0)
    place(backbone, Worker(device=device))
    freeze(backbone, 0)
    kept = features.half()
    num = len(labels)

    def held(epoch: int) -> HeldEpoch:
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(num)).to(device)
        sizes = tuple(len(part) for part in np.array_split(np.arange(num), -(-num // batch)))
        return HeldEpoch((kept,), labels, order, sizes)

    def some() -> Any:
        for begin in range(0, num // 8, batch):
            rows = torch.arange(begin, begin + batch, device=device)
            yield Batch((kept.index_select(0, rows),), labels[rows], rows, batch)

    streams = Streams(None, lambda epoch, first=0: some(), some, some, num, num // 8, num // 8, held)
    by_epoch: dict[int, float] = {}
    with scratch() as folder:
        fit_group(
            backbone,
            streams,
            trials,
            Worker(device=device),
            GroupFolder(str(folder), "t0"),
            "h",
            lambda trial_id, metrics: by_epoch.__setitem__(metrics.epoch, metrics.images_per_second / heads),
        )
    return max(by_epoch[epoch] for epoch in (2, 3))


@dataclass(frozen=True)
class Passed:
    """An activation pass, and what may read what it has stored."""

    planned: PlannedRun
    speed: float  # images a second, warm
    estimated: float  # by the plan


def activation_pass(name: str, images: Path, storage: Path, blocks: int, device: torch.device) -> Passed:
    """Everything through the prefix of two cuts; the first chunks, in which kernels are chosen, are not timed."""
    config = RunConfig.model_validate(
        {
            "name": "gpu",
            "storage": str(storage),
            "data": {"train": str(images), "memory_cache_mb": 0},
            "backbones": [{"id": f"torchvision/{name}", "weights": "none"}],
            "strategies": [
                {"strategy": "linear_probe", "solver": "gradient"},
                {"strategy": "partial", "trainable_blocks": blocks},
            ],
            "training": {"augmentation": "none", "epochs": 3},
            "activations": {"materialise": "always"},
        }
    )
    planned = plan_run(config)
    store = open_store(planned.config)
    sources = planned.plan.activations
    chunks = list_chunks(sources, planned.manifest, store, images_per_shard=512, num_workers=1)
    settings = PassSettings(
        num_classes=len(planned.manifest.classes),
        run="gpu",
        device=device,
        num_threads=max(planned.config.data.num_threads, decoders(device)),
        read=image_reader(planned.config.data),
    )
    cold = max(1, len(chunks) // 8)
    for _ in compute_chunks(chunks[:cold], planned.manifest.find, store, settings):
        pass
    started = time.perf_counter()
    done = sum(
        outcome.num_forwards for _, outcome in compute_chunks(chunks[cold:], planned.manifest.find, store, settings)
    )
    seconds = time.perf_counter() - started
    each = max(max(source.decode_seconds, source.prefix_seconds) for source in sources)
    return Passed(planned, done / seconds, 1 / each)


def stored_trial(passed: Passed, strategy: str, batch: int, device: torch.device) -> tuple[Trained, Streams, float]:
    """A trial on what the pass has stored -> how it went, its streams, and the images a second that a plan expects."""
    planned = passed.planned
    (one,) = [t for t in planned.trials if t.strategy.strategy == strategy and not t.is_baseline]
    one = one.model_copy(update={"recipe": one.recipe.model_copy(update={"batch_size": batch, "epochs": 4})})
    backbone = build_backbone(one.backbone, len(planned.manifest.classes), seed=0)
    most = thaw_plan(backbone, one).most
    num_frozen = len(backbone.blocks) - most
    source = source_of(planned.plan.activations, one.trial_id, num_frozen)
    assert source is not None
    streams = activation_streams(planned.manifest, source, one, Worker(device=device), open_store(planned.config))
    trained = _fit(backbone, one, lambda blocks: Feed(streams, trainable_suffix(backbone, num_frozen)), device)
    step = measure_steps(backbone, one, most, on_activations=True, num_threads=1)
    return trained, streams, 1 / step.train


def preprocessing_of(config: BackboneConfig) -> Preprocessing:
    return build_backbone(config, NUM_CLASSES, seed=0).preprocessing


def expected_full(name: str, batch: int) -> float:
    """Images a second that a plan expects of a full trial."""
    one = trial(name, batch_size=batch)
    backbone = build_backbone(one.backbone, NUM_CLASSES, seed=0)
    return 1 / measure_steps(backbone, one, len(backbone.blocks), on_activations=False, num_threads=1).train
