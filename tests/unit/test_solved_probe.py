"""Linear probes that are solved: as scikit-learn solves them, as trials among others, killed and damaged."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_splits import split_folders
from probe_runs import NETWORK, Curves, activation_images, live_images, make_trials, run_group, run_one_by_one
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tlray.config import BackboneConfig, DataConfig, RunConfig, TrialConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.models.backbone import build_backbone
from tlray.models.freeze import freeze
from tlray.models.split import trainable_suffix
from tlray.planning.planner import plan_run
from tlray.runs.trials import read_trial_result
from tlray.training import checkpoint, solved_probe
from tlray.training.loop import Feed
from tlray.training.mend import history_lines
from tlray.training.solved_probe import training_features, unsolvable
from tlray.training.trial import load_trained, run_trial
from tlray.training.worker import local_worker

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def manifest(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folders = split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=3, test=3)
    return make_manifest(DataConfig(**folders))


def solved(network: BackboneConfig = NETWORK, **recipe: object) -> TrialConfig:
    """A trial t0 that is to be solved, of a recipe with five epochs that it has no use for."""
    (trial,) = make_trials(network, ({},), **recipe)
    strategy = trial.strategy.model_copy(update={"solver": "lbfgs"})
    return trial.model_copy(update={"strategy": strategy})


def stored_features(manifest: Manifest, trial: TrialConfig) -> tuple[np.ndarray, np.ndarray]:
    backbone = build_backbone(trial.backbone, len(manifest.classes), seed=trial.seed)
    freeze(backbone, 0)
    backbone.model.eval()
    num_blocks = len(backbone.blocks)
    streams = activation_images(manifest).open_activations(backbone, num_blocks, trial, local_worker())
    assert streams is not None
    feed = Feed(streams, trainable_suffix(backbone, num_blocks))
    features, labels = training_features(backbone, feed, 0, "float32", local_worker())
    return features.numpy(), labels.numpy()


def test_a_solved_probe_is_scikit_learns_on_the_same_stored_features(manifest: Manifest, tmp_path: Path) -> None:
    trial = solved()
    (row,), curves = run_group([trial], tmp_path, activation_images(manifest))
    features, labels = stored_features(manifest, trial)
    assert labels.tolist() == [image.label for image in manifest.split("train")]
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    theirs = LogisticRegression(C=row.params["C"], tol=1e-10, max_iter=50_000).fit(scaled, labels)
    model = load_trained(trial, str(tmp_path), len(manifest.classes)).model
    with torch.no_grad():
        ours = model.fc(torch.tensor(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaled), atol=1e-3)
    assert [metrics.epoch for metrics in curves["t0"]] == [1]
    assert (row.status, row.epochs, row.best_epoch, row.images_seen) == ("completed", 1, 1, len(labels))
    assert row.prefix_images_computed == 36, "what the activation pass is charged to it"
    assert row.params["solver"] == "lbfgs"
    assert "lr" not in row.params
    assert read_trial_result(str(tmp_path), "t0") == row


def test_alone_in_a_group_or_on_images_a_probe_has_one_solution(manifest: Manifest, tmp_path: Path) -> None:
    stored = activation_images(manifest, torch.float32)
    (grouped,), _ = run_group([solved()], tmp_path / "group", stored)
    (alone,), curves = run_one_by_one([solved()], tmp_path / "alone", stored)
    (live,), _ = run_one_by_one([solved()], tmp_path / "live", live_images(manifest))
    assert len(curves["t0"]) == 1
    for row in (alone, live):
        assert row.params == grouped.params
        assert row.val_loss == pytest.approx(grouped.val_loss, abs=1e-4)
        assert (row.val_accuracy, row.test_accuracy) == (grouped.val_accuracy, grouped.test_accuracy)
    assert live.prefix_images_computed == len(manifest.split("train")) + len(manifest.split("val"))


def test_solved_probes_and_probes_by_gradients_share_a_group(manifest: Manifest, tmp_path: Path) -> None:
    images = activation_images(manifest)
    trials = [solved().model_copy(update={"trial_id": "t9"}), *make_trials()]
    rows, curves = run_group(trials, tmp_path / "mixed", images)
    apart, _ = run_group(make_trials(), tmp_path / "apart", images)
    assert [row.trial_id for row in rows] == ["t9", "t0", "t1", "t2", "t3", "t4"]
    assert [row.val_loss for row in rows[1:]] == [row.val_loss for row in apart]
    assert len(curves["t9"]) == 1
    assert rows[0].val_loss is not None


@pytest.mark.parametrize("moment", ["save_history", "save_progress", "write_predictions"])
def test_a_probe_killed_at_any_commit_ends_like_an_undisturbed_one(
    moment: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = activation_images(manifest)
    (whole,), _ = run_group([solved()], tmp_path / "whole", images)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    module = "tlray.training.trial" if moment == "write_predictions" else "tlray.training.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            run_group([solved()], tmp_path / "killed", images)
    (row,), curves = run_group([solved()], tmp_path / "killed", images)
    assert_same(row, whole, tmp_path)
    assert len(curves["t0"]) == 1
    assert len(history_lines(str(tmp_path / "killed" / "trials" / "t0"))) == 1


def assert_same(row: Any, whole: Any, folder: Path) -> None:
    update = {"seconds": 0, "peak_memory_bytes": 0, "checkpoint": None}
    assert row.model_copy(update=update) == whole.model_copy(update=update)
    files = [load_file(folder / run / "trials" / "t0" / "epoch-0001.safetensors") for run in ("whole", "killed")]
    assert all(tensor.equal(files[1][key]) for key, tensor in files[0].items())


def test_a_damaged_checkpoint_is_solved_again_to_the_same(manifest: Manifest, tmp_path: Path) -> None:
    images = activation_images(manifest)
    (whole,), _ = run_group([solved()], tmp_path / "whole", images)
    run_group([solved()], tmp_path / "killed", images)
    trial = tmp_path / "killed" / "trials" / "t0"
    (trial / "epoch-0001.safetensors").write_bytes(b"damaged")
    (trial / "result.json").unlink()
    (row,), _ = run_group([solved()], tmp_path / "killed", images)
    assert_same(row, whole, tmp_path)
    (note,) = (tmp_path / "killed" / "notes").iterdir()
    assert "epoch-0001.safetensors is damaged or missing; the trial starts again" in note.read_text()


def test_of_several_workers_the_first_solves_and_all_report(manifest: Manifest, tmp_path: Path) -> None:
    told: Curves = {"0": [], "1": []}
    images = activation_images(manifest)
    first = dataclasses.replace(local_worker(), world_size=2)
    row = run_trial(solved(), str(tmp_path), first, images, told["0"].append)
    assert row is not None
    second = dataclasses.replace(first, rank=1)
    assert run_trial(solved(), str(tmp_path), second, images, told["1"].append) is None
    assert told["0"] == told["1"]


def test_augmented_draws_of_images_are_solved_on_too(manifest: Manifest, tmp_path: Path) -> None:
    augmented = solved(augmentation="light", views=3)
    (row,), _ = run_one_by_one([augmented], tmp_path, live_images(manifest))
    assert row.images_seen == 3 * len(manifest.split("train"))
    assert row.prefix_images_computed == row.images_seen + len(manifest.split("val"))


HEADS = {
    "timm/deit_tiny_distilled_patch16_224": "its classifier is not one linear layer with a bias",  # two
    "timm/levit_128s": "its classifier is not one linear layer with a bias",  # normalised
    "timm/dpn68": None,  # a convolution on pooled features
    "torchvision/squeezenet1_0": None,
    "torchvision/mobilenet_v2": None,  # with dropout in front
}


@pytest.mark.parametrize("name", HEADS)
def test_a_probe_is_solved_where_the_classifier_is_one_linear_layer(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(id=name, weights="none"), 3)
    assert unsolvable(backbone, 1000) == HEADS[name]


def test_features_beyond_the_memory_for_them_are_trained_on_by_gradients_and_the_row_says_so(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = activation_images(manifest)
    (other,), _ = run_one_by_one(make_trials(mix=({},)), tmp_path / "gradient", images)
    monkeypatch.setattr(solved_probe, "LARGEST_FEATURES", 1000)
    (row,), curves = run_group([solved()], tmp_path / "run", images)
    assert row.note is not None
    assert row.note.startswith("trained by gradients: its features would take 0.0 GiB")
    assert (row.epochs, len(curves["t0"])) == (5, 5)
    assert (row.params, row.val_loss) == (other.params, other.val_loss)


def test_the_convolution_of_a_pooled_classifier_is_solved_too(manifest: Manifest, tmp_path: Path) -> None:
    network = BackboneConfig(id="timm/dla34", weights="none", input_size=32)
    (row,), _ = run_one_by_one([solved(network)], tmp_path, live_images(manifest))
    assert row.params["solver"] == "lbfgs"
    assert row.val_accuracy is not None
    assert checkpoint.checkpoint_name(1) in str(row.checkpoint)


def test_a_plan_counts_a_solved_probe_once_and_names_what_cannot_be_solved(image_folder: Path, tmp_path: Path) -> None:
    two_heads = {"id": "timm/deit_tiny_distilled_patch16_224", "input_size": 32, "options": {"depth": 1}}
    networks = [NETWORK.model_dump(), {**two_heads, "weights": "none"}]
    config = RunConfig.model_validate(
        {
            "name": "test",
            "storage": str(tmp_path),
            "data": {"train": str(image_folder)},
            "backbones": networks,
            "strategies": ["linear_probe"],
            "search_space": {"lr": {"grid": [0.1, 0.01, 0.001]}},
            "training": {"epochs": 7, "batch_size": 8, "augmentation": "none"},
            "baseline": {"backbone": NETWORK},
        }
    )
    plan = plan_run(config).plan
    assert [(trial.epochs, "lr" in trial.params) for trial in plan.trials[1:]] == [(1, False), (7, True)]
    (note,) = [note for note in plan.notes if "linear probe" in note]
    assert note.startswith("timm/deit_tiny_distilled_patch16_224: its linear probe is trained by gradients: its class")
    (kept,) = [source for source in plan.activations if source.trials == ("001-test_resnet-linear_probe",)]
    assert kept.materialise
    assert kept.num_reads == sum(plan.num_images.values())
    assert plan.estimate is not None
    costs = {cost.trial_id: cost for cost in plan.estimate.costs}
    assert costs["001-test_resnet-linear_probe"].group == "001-test_resnet-linear_probe", "it waits for no other"
    assert costs["001-test_resnet-linear_probe"].seconds > 0
