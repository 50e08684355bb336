"""Frozen work is done once: what trials share, what a second run finds, what new images and new weights cost."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from tlray.backbone import build_backbone
from tlray.config import BackboneConfig, RunConfig
from tlray.data.loader import load_draws
from tlray.data.transforms import normalise
from tlray.prepare import Run, load_run, new_run_uri
from tlray.results import TrialResult, load_results
from tlray.run import features, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
MakeConfig = Callable[..., RunConfig]
PLAIN = {"epochs": 3, "batch_size": 8, "lr": 0.01, "augmentation": "none"}
RATES = {"search_space": {"lr": {"grid": [0.003, 0.01, 0.03]}}}
PARTIAL = {"strategy": "partial", "trainable_blocks": 2}
ALWAYS = {"materialise": "always"}


def sweep(config: RunConfig) -> tuple[Run, dict[str, TrialResult]]:
    run_uri = new_run_uri(config)
    run(config, run_uri, Console(file=io.StringIO()))
    loaded = load_run(run_uri)
    results = {result.trial_id: result for result in load_results(run_uri)}
    assert {result.status for result in results.values()} == {"completed"}, results
    return loaded, results


def losses(loaded: Run, trial_id: str) -> list[tuple[float, float]]:
    rows = (Path(loaded.uri) / "trials" / trial_id / "history.jsonl").read_text().splitlines()
    return [(row["train_loss"], row["val_loss"]) for row in map(json.loads, rows)]


def num_images(loaded: Run) -> int:
    return len(loaded.manifest.images)


def test_every_image_goes_through_a_frozen_prefix_once_for_all_trials_and_never_again(make_config: MakeConfig) -> None:
    probes = {"strategy": "linear_probe", **RATES}
    config = make_config(strategies=[probes, PARTIAL], training=PLAIN, activations=ALWAYS)
    loaded, first = sweep(config)
    computed = {trial_id: row.prefix_images_computed for trial_id, row in first.items()}
    assert computed.pop("001-test_resnet-linear_probe") == num_images(loaded)  # both cuts out of one forward
    assert set(computed.values()) == {0}
    _, second = sweep(config)
    assert sum(row.prefix_images_computed for row in second.values()) == 0
    for trial_id, row in first.items():
        assert (second[trial_id].val_loss, second[trial_id].test_accuracy) == (row.val_loss, row.test_accuracy)


def test_without_materialising_every_trial_and_epoch_pays(make_config: MakeConfig) -> None:
    config = make_config(strategies=[PARTIAL], training=PLAIN, activations={"materialise": "never"})
    loaded, results = sweep(config)
    per_epoch = len(loaded.manifest.split("train")) + len(loaded.manifest.split("val"))
    assert results["001-test_resnet-partial-2"].prefix_images_computed == 3 * per_epoch


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 2e-3)])
def test_trials_on_activations_train_like_trials_on_images(
    dtype: str, tolerance: float, make_config: MakeConfig
) -> None:
    """float32 differs by the order of additions (batches of another size, folded norms), float16 by its rounding:

    an activation is stored to 2^-11 of its value, and a loss of order 1 moves by less than 2e-3.
    """
    gradual = {"strategy": "gradual", "unfreeze": {2: 2, 3: "all"}}
    fields = {"strategies": ["linear_probe", PARTIAL, gradual], "training": PLAIN}
    live, _ = sweep(make_config(**fields, activations={"materialise": "never"}))
    kept, _ = sweep(make_config(**fields, activations={"materialise": "always", "dtype": dtype}))
    for trial_id in ("001-test_resnet-linear_probe", "002-test_resnet-partial-2", "003-test_resnet-gradual"):
        assert len(losses(kept, trial_id)) == 3
        for expected, actual in zip(losses(live, trial_id), losses(kept, trial_id), strict=True):
            assert actual == pytest.approx(expected, abs=tolerance)


def test_views_are_drawn_once_for_the_training_images_alone(make_config: MakeConfig) -> None:
    training = {**PLAIN, "augmentation": "standard", "views": 3, "epochs": 4}
    loaded, results = sweep(make_config(strategies=["linear_probe"], training=training, activations=ALWAYS))
    draws = 3 * len(loaded.manifest.split("train")) + len(loaded.manifest.split("val"))
    assert results["001-test_resnet-linear_probe"].prefix_images_computed == draws + len(loaded.manifest.split("test"))
    _, live = sweep(make_config(strategies=["linear_probe"], training={**training, "views": 0}, activations=ALWAYS))
    per_epoch = len(loaded.manifest.split("train")) + len(loaded.manifest.split("val"))
    assert live["001-test_resnet-linear_probe"].prefix_images_computed == 4 * per_epoch


def test_only_new_images_are_computed_and_removed_ones_cost_nothing(
    make_config: MakeConfig, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "growing"
    for path in sorted(image_folder.rglob("*.png")) + sorted(image_folder.rglob("*.jpg")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    data = {"train": str(folder), "val_fraction": 0.25, "test_fraction": 0.25}
    config = make_config(data=data, strategies=["linear_probe"], training=PLAIN, activations=ALWAYS)
    sweep(config)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    classes = sorted(path for path in folder.iterdir())
    Image.fromarray(noise).save(classes[0] / "new.png")
    Image.fromarray(noise[::-1]).save(classes[1] / "new.png")
    next(path for path in sorted(classes[2].iterdir())).unlink()
    _, results = sweep(config)
    assert sum(row.prefix_images_computed for row in results.values()) == 2


def test_other_weights_never_reuse_activations(make_config: MakeConfig, tmp_path: Path) -> None:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    model = build_backbone(BackboneConfig.model_validate(network), 3, seed=1).model
    weights = tmp_path / "weights.safetensors"

    def computed() -> int:
        save_file(model.state_dict(), weights, metadata={"library": "timm", "arch": "test_resnet"})
        backbone = {**network, "weights": str(weights)}
        fields = {"strategies": ["linear_probe"], "training": PLAIN, "activations": ALWAYS}
        loaded, results = sweep(make_config(backbones=[backbone], **fields))
        assert sum(row.prefix_images_computed for row in results.values()) in (0, num_images(loaded))
        return sum(row.prefix_images_computed for row in results.values())

    assert computed() > 0
    assert computed() == 0
    with torch.no_grad():
        next(model.buffers()).add_(0.1)  # a running mean: no parameter, and still what a frozen prefix computes with
    assert computed() > 0


def test_features_are_what_the_backbone_computes_of_every_image(make_config: MakeConfig) -> None:
    config = make_config(strategies=["full"])
    run_uri = new_run_uri(config)
    (written,) = features(config, run_uri, Console(file=io.StringIO()))
    table = pq.read_table(written).to_pydict()
    loaded = load_run(run_uri)
    backbone = build_backbone(loaded.config.backbones[0], 3, seed=0)
    backbone.model.eval()
    images = loaded.manifest.images
    assert table["content_id"] == [image.content_id for image in images]
    assert table["class"] == [loaded.manifest.classes[image.label] for image in images]
    pixels = torch.stack(list(load_draws(images, backbone.preprocessing, "none", 0, num_threads=1)))
    with torch.no_grad():
        expected = backbone.model.forward_head(
            backbone.model.forward_features(normalise(pixels, backbone.preprocessing)), pre_logits=True
        )
    stored = torch.tensor(table["features"])
    assert stored.shape == expected.shape
    assert math.isclose(float((stored - expected).abs().max() / expected.abs().max()), 0, abs_tol=1e-3)
