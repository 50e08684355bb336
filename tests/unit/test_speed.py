"""Seconds an image, measured on the real network, remembered, and put together to a trial's."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlray.config import BackboneConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.models.backbone import build_backbone
from tlray.planning.speed import steps as speed
from tlray.planning.speed.steps import measure_steps
from tlray.runs.budget.costs import CHECKPOINT_SECONDS, Phase, ReadSeconds, StepSeconds, trial_seconds

NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tlray" / "steps"


def trial(**recipe: Any) -> TrialConfig:
    return TrialConfig(
        trial_id="t",
        backbone=NETWORK,
        strategy=StrategyConfig(strategy="full"),
        recipe=Recipe.model_validate({"batch_size": 8, **recipe}),
        seed=0,
    )


def config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "data": {"train": "d", "num_threads": 2}, "backbones": ["a"], "sweep": {"scheduler": "fifo"}}
        | fields
    )


def test_what_was_measured_once_is_remembered_and_something_else_is_measured(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone(NETWORK, 3)
    first = measure_steps(backbone, trial(), 2, on_activations=True, num_threads=1)
    assert first.train > 0
    assert first.evaluate > 0
    measured: list[int] = []
    monkeypatch.setattr(
        speed, "_measure", lambda backbone, trial, blocks, *rest: measured.append(blocks) or StepSeconds(1.0, 1.0)
    )
    assert measure_steps(backbone, trial(lr=0.5), 2, on_activations=True, num_threads=1) == first
    assert not measured
    measure_steps(backbone, trial(), 2, on_activations=False, num_threads=1)
    measure_steps(backbone, trial(), 3, on_activations=True, num_threads=1)
    measure_steps(backbone, trial(optimizer="sgd"), 2, on_activations=True, num_threads=1)
    assert len(measured) == 3
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_cache_costs_measuring_again(cache: Path) -> None:
    backbone = build_backbone(NETWORK, 3)
    measure_steps(backbone, trial(), 0, on_activations=True, num_threads=1)
    (file,) = cache.iterdir()
    for damaged in ('{"half', "[]", '{"figures": 1}'):
        file.write_text(damaged)
        measured = measure_steps(backbone, trial(), 0, on_activations=True, num_threads=1)
        assert json.loads(file.read_text())["figures"]["train"] == measured.train


def test_measuring_changes_no_weight() -> None:
    backbone = build_backbone(NETWORK, 3)
    before = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    for trainable in (0, 2, len(backbone.blocks)):
        measure_steps(backbone, trial(), trainable, on_activations=False, num_threads=1)
    assert all(parameter.equal(before[name]) for name, parameter in backbone.model.named_parameters())


def test_a_trial_takes_what_its_images_and_epochs_add_up_to() -> None:
    phases = [
        Phase(3, StepSeconds(train=0.2, evaluate=0.1), ReadSeconds(first=0.05, again=0.01)),
        Phase(1, StepSeconds(train=0.4, evaluate=0.1), ReadSeconds(first=0.05, again=0.01)),
    ]
    num_images = {"train": 100, "val": 10, "test": 20}
    first, again = 100 * 0.25 + 10 * 0.15, 100 * 0.21 + 10 * 0.11
    expected = first + 2 * again + (100 * 0.45 + 10 * 0.15) + 4 * CHECKPOINT_SECONDS + 20 * 0.15
    assert trial_seconds(trial(epochs=4), phases, num_images, config(), overlapped=False) == pytest.approx(expected)


def test_beside_a_gpu_the_slower_of_decoding_and_training_counts() -> None:
    slow_reads = [Phase(1, StepSeconds(train=0.01, evaluate=0.01), ReadSeconds(first=0.4, again=0.4))]
    seconds = trial_seconds(trial(epochs=1), slow_reads, {"train": 10, "val": 0, "test": 0}, config(), overlapped=True)
    assert seconds == pytest.approx(10 * 0.4 / 2 + CHECKPOINT_SECONDS)
