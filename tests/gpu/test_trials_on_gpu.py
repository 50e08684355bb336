"""Trials on a GPU: like those on a CPU, the same twice where that is asked for, and nothing left behind."""

import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_runs import activation_images, holding, make_trials

from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.batch import Batch, Streams
from tlray.data.manifest import Manifest
from tlray.models.backbone import build_backbone
from tlray.models.freeze import parameter_groups
from tlray.runs.results import TrialResult
from tlray.training import loop
from tlray.training.checkpoint import TrialFolder
from tlray.training.epoch import EpochMetrics
from tlray.training.inputs import place
from tlray.training.loop import Feed, fit
from tlray.training.optim import make_optimizer
from tlray.training.probe_group import run_probe_group
from tlray.training.step import train_step
from tlray.training.trial import load_trained, manifest_images, release_memory, run_trial
from tlray.training.worker import Worker

pytestmark = pytest.mark.gpu
NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)
STRATEGIES = ["linear_probe", "partial", "gradual", "full", "scratch"]
# Losses of order 1 after three epochs: float32 convolves in TF32 (2^-11), bfloat16 has 8 bits, float16 11.
TOLERANCE = {"float32": 0.02, "bfloat16": 0.08, "float16": 0.03}


def make_trial(strategy: str = "full", **recipe: object) -> TrialConfig:
    blocks = {"trainable_blocks": 2} if strategy == "partial" else {}
    return TrialConfig(
        trial_id="t",
        backbone=NETWORK,
        strategy=StrategyConfig.model_validate({"strategy": strategy, **blocks}),
        recipe=Recipe.model_validate({"epochs": 3, "batch_size": 8, "lr": 0.001, "augmentation": "none", **recipe}),
        seed=0,
    )


def train(
    trial: TrialConfig, folder: Path, manifest: Manifest, worker: Worker
) -> tuple[TrialResult, list[EpochMetrics]]:
    curve: list[EpochMetrics] = []
    images = manifest_images(manifest, DataConfig(train="unused"))
    result = run_trial(trial, str(folder), worker, images, curve.append)
    assert result is not None
    return result, curve


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trial_on_a_gpu_learns_what_it_learns_on_a_cpu(
    strategy: str, precision: str, manifest: Manifest, worker: Worker, tmp_path: Path
) -> None:
    result, ours = train(make_trial(strategy, precision=precision), tmp_path / "gpu", manifest, worker)
    _, theirs = train(make_trial(strategy, precision="float32"), tmp_path / "cpu", manifest, Worker())
    assert result.params["precision"] == precision
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, abs=TOLERANCE[precision])


def test_the_default_is_bfloat16_where_the_gpu_has_it(manifest: Manifest, worker: Worker, tmp_path: Path) -> None:
    result, _ = train(make_trial(), tmp_path, manifest, worker)
    has_it = torch.cuda.get_device_capability(worker.device) >= (8, 0)
    assert result.params["precision"] == ("bfloat16" if has_it else "float16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_deterministic_trial_is_the_same_to_the_bit(
    precision: str, manifest: Manifest, worker: Worker, tmp_path: Path
) -> None:
    trial = make_trial(precision=precision, deterministic=True)
    (_, first), (_, second) = (train(trial, tmp_path / name, manifest, worker) for name in ("a", "b"))
    assert [(m.train_loss, m.val_loss) for m in first] == [(m.train_loss, m.val_loss) for m in second]
    assert not torch.are_deterministic_algorithms_enabled()


class Killed(Exception):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_trial_killed_inside_an_epoch_goes_on_to_the_bit(precision: str, worker: Worker, tmp_path: Path) -> None:
    trial = make_trial(precision=precision, deterministic=True, checkpoint_steps=3, epochs=2)
    armed = [True]

    def run(folder: Path, kill: bool) -> list[tuple[float, float]]:
        backbone = build_backbone(NETWORK, 3, seed=0)
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (9, 8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (9, 8), generator=generator)

        def stream(epoch: int, first: int = 0) -> Iterator[Batch]:
            for step in range(first, 9):
                if kill and armed[0] and epoch == 2 and step == 7:
                    armed[0] = False
                    raise Killed
                yield Batch((pixels[step],), labels[step], torch.arange(8), 8)

        def val() -> Iterator[Batch]:
            return stream(0, 8)

        streams = Streams(backbone.preprocessing, stream, val, val, 72, 8, 8)
        feed = Feed(streams, backbone.model)
        progress = fit(backbone, lambda blocks: feed, trial, worker, TrialFolder(str(folder)), lambda metrics: None)
        return [(metrics.train_loss, metrics.val_loss) for metrics in progress.history]

    undisturbed = run(tmp_path / "run" / "trials" / "whole", kill=False)
    killed = tmp_path / "run" / "trials" / "killed"
    with pytest.raises(Killed):
        run(killed, kill=True)
    assert run(killed, kill=True) == undisturbed


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_call_of_a_step_waits_for_the_gpu(precision: str, optimizer: str, worker: Worker) -> None:
    backbone = build_backbone(NETWORK, 3, seed=0)
    place(backbone, worker)
    recipe = Recipe.model_validate({"optimizer": optimizer, "gradient_clip": 1.0})
    made = make_optimizer(parameter_groups(backbone), recipe)
    scaler = torch.amp.GradScaler("cuda") if precision == "float16" else None
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8).pin_memory()
    labels = torch.zeros(8, dtype=torch.int64).pin_memory()
    streams = Streams(backbone.preprocessing, None, None, None, 8, 8, 8)  # type: ignore[arg-type]
    criterion = torch.nn.CrossEntropyLoss(reduction="sum")

    def step() -> None:
        there = labels.to(worker.device, non_blocking=True)
        batch = Batch((pixels.to(worker.device, non_blocking=True),), there, labels, 8)
        inputs = loop.model_inputs(batch, streams, worker, precision)
        train_step(
            backbone.model, inputs, there, criterion, made, precision=precision, scaler=scaler, gradient_clip=1.0
        )

    step()  # what is made once, the mean and the optimizer's state, may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_where_it_was_after_twenty_trials(manifest: Manifest, worker: Worker, tmp_path: Path) -> None:
    seen: list[int] = []
    for number in range(20):
        train(make_trial(STRATEGIES[number % 5], epochs=1), tmp_path / str(number), manifest, worker)
        release_memory()
        gc.collect()
        seen.append(torch.cuda.memory_allocated(worker.device))
    assert seen[-1] <= seen[4] + 2**20


def test_a_checkpoint_made_on_a_gpu_is_the_model_on_a_cpu(manifest: Manifest, worker: Worker, tmp_path: Path) -> None:
    trial = make_trial(precision="float32")
    train(trial, tmp_path, manifest, worker)
    model = load_trained(trial, str(tmp_path), 3).model
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "shared",
    [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"label_smoothing": 0.1}, {"gradient_clip": 0.05}],
    ids=lambda shared: "-".join(map(str, shared.values())),
)
def test_heads_in_a_cuda_graph_train_like_heads_one_call_at_a_time(
    shared: dict[str, Any], manifest: Manifest, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_trials(batch_size=2, patience=0, epochs=3, precision="float32", **shared)
    images = holding(activation_images(manifest))
    curves = []
    for worth in (1, 10**9):
        monkeypatch.setattr("tlray.training.probe_steps.WORTH_CAPTURING", worth)
        curves.append(train_group(trials, tmp_path / str(worth), on(images, worker), worker))
    for trial_id, graph in curves[0].items():
        eager = curves[1][trial_id]
        assert [m.train_loss for m in graph] == pytest.approx([m.train_loss for m in eager], rel=1e-4)
        assert [m.val_loss for m in graph] == pytest.approx([m.val_loss for m in eager], rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_heads_on_a_gpu_learn_what_they_learn_on_a_cpu(
    precision: str, manifest: Manifest, worker: Worker, tmp_path: Path
) -> None:
    trials = make_trials(mix=[{"lr": 0.003}, {"lr": 0.01, "label_smoothing": 0.1}], precision=precision)
    images = activation_images(manifest)
    curve = train_group(trials, tmp_path / "gpu", on(holding(images), worker), worker)
    plain = [t.model_copy(update={"recipe": t.recipe.model_copy(update={"precision": "float32"})}) for t in trials]
    theirs = train_group(plain, tmp_path / "cpu", images, Worker())
    for trial_id, mine in curve.items():
        losses = [m.train_loss for m in theirs[trial_id]]
        assert [m.train_loss for m in mine] == pytest.approx(losses, abs=TOLERANCE[precision])


def train_group(trials: list, folder: Path, images: Any, worker: Worker) -> dict[str, list[EpochMetrics]]:
    curves: dict[str, list[EpochMetrics]] = {}
    run_probe_group(trials, str(folder), worker, images, lambda trial_id, m: curves.setdefault(trial_id, []).append(m))
    return curves


def on(images: Any, worker: Worker) -> Any:
    """The made-up activations with what is held of them on the worker's device."""

    def open_activations(backbone: Any, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams:
        on_cpu = build_backbone(trial.backbone, 3, seed=trial.seed)
        streams = images.open_activations(on_cpu, num_frozen, trial, Worker())

        def held(epoch: int) -> Any:
            one = streams.held(epoch)
            if not kept:
                kept.extend([tuple(value.to(worker.device) for value in one.values), one.labels.to(worker.device)])
            return replace(one, values=kept[0], labels=kept[1], order=one.order.to(worker.device))

        kept: list[Any] = []
        return replace(streams, held=held)

    return replace(images, open_activations=open_activations)


def test_a_trial_that_diverges_in_bfloat16_is_repeated_in_float32(
    manifest: Manifest, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*arguments: Any, precision: str, **named: Any) -> torch.Tensor:
        loss = train_step(*arguments, precision=precision, **named)
        return loss if precision == "float32" else loss * math.inf

    monkeypatch.setattr(loop, "train_step", step)
    result, curve = train(make_trial(), tmp_path, manifest, worker)
    assert result.params["precision"] == "float32"
    assert "repeated in float32" in (result.note or "")
    assert len(curve) == 3
