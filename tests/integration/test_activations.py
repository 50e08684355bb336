"""Frozen work is done once on a real Ray: by all trials of a sweep together, by the next sweep not at all; features."""

import io
import math
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from tlray.config import RunConfig
from tlray.data.loader import load_draws
from tlray.data.transforms import normalise
from tlray.models.backbone import build_backbone
from tlray.runs.prepare import Run, load_run, new_run_uri
from tlray.runs.results import TrialResult
from tlray.runs.trials import load_results
from tlray.workflows.run import features, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
MakeConfig = Callable[..., RunConfig]


def sweep(config: RunConfig) -> tuple[Run, dict[str, TrialResult]]:
    run_uri = new_run_uri(config)
    run(config, run_uri, Console(file=io.StringIO()))
    loaded = load_run(run_uri)
    results = {result.trial_id: result for result in load_results(run_uri)}
    assert {result.status for result in results.values()} == {"completed"}, results
    return loaded, results


def test_a_sweep_computes_frozen_work_once_and_the_next_sweep_not_at_all(make_config: MakeConfig) -> None:
    probes = {"strategy": "linear_probe", "search_space": {"lr": {"grid": [0.003, 0.01, 0.03]}}}
    partial = {"strategy": "partial", "trainable_blocks": 2}
    training = {"epochs": 3, "batch_size": 8, "lr": 0.01, "augmentation": "none"}
    config = make_config(strategies=[probes, partial], training=training, activations={"materialise": "always"})
    loaded, first = sweep(config)
    computed = [row.prefix_images_computed for _, row in sorted(first.items())]
    assert computed == [0, len(loaded.manifest.images), 0, 0, 0]  # the baseline, then the first that reads
    _, second = sweep(config)
    assert sum(row.prefix_images_computed for row in second.values()) == 0
    for trial_id, row in first.items():
        assert (second[trial_id].val_loss, second[trial_id].test_accuracy) == (row.val_loss, row.test_accuracy)


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
