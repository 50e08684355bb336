"""A group of linear probes leaves what its trials leave when they are trained one by one."""

from pathlib import Path

import pytest
import torch
from image_splits import split_folders
from probe_runs import (
    MIX,
    TOLERANCE,
    activation_images,
    assert_same_curve,
    assert_same_folder,
    assert_same_row,
    holding,
    live_images,
    make_trials,
    run_group,
    run_one_by_one,
)

from tlray.config import BackboneConfig, DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.errors import TrialError
from tlray.runs.results import TrialResult
from tlray.runs.trials import read_trial_result, write_trial_result
from tlray.training import probe_group
from tlray.training.trial import load_trained


@pytest.fixture(scope="module")
def manifest(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folders = split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=3, test=3)
    return make_manifest(DataConfig(**folders))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_group_ends_like_its_trials_one_by_one(
    optimizer: str, dtype: torch.dtype, manifest: Manifest, tmp_path: Path
) -> None:
    images = activation_images(manifest, dtype)
    trials = make_trials(optimizer=optimizer)
    theirs, their_curves = run_one_by_one(trials, tmp_path / "alone", images)
    ours, our_curves = run_group(trials, tmp_path / "group", images)
    assert len({row.epochs for row in theirs}) > 1, "some rows should end before others"
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        name = trial.trial_id
        assert mine.status == "completed"
        assert_same_row(mine, other)
        assert_same_curve(our_curves[name], their_curves[name], TOLERANCE)
        assert_same_folder(tmp_path / "group" / "trials" / name, tmp_path / "alone" / "trials" / name)
        assert read_trial_result(str(tmp_path / "group"), name) == mine
    assert [row.prefix_images_computed for row in ours] == [36, 0, 0, 0, 0]
    assert not list((tmp_path / "group" / "groups").rglob("*.*"))


# heads that are mapped over the rows, and dropout: equal seeds draw equal masks
OTHER_HEADS = [
    BackboneConfig(
        id="timm/deit_tiny_distilled_patch16_224", weights="none", input_size=64, options={"depth": 1, "drop_rate": 0.3}
    ),
    BackboneConfig(id="torchvision/mobilenet_v2", weights="none", input_size=32),
]


@pytest.mark.parametrize("config", OTHER_HEADS, ids=lambda config: config.id)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_heads_and_dropout_end_like_trials_one_by_one_too(
    config: BackboneConfig, optimizer: str, manifest: Manifest, tmp_path: Path
) -> None:
    images = activation_images(manifest)
    trials = make_trials(config, MIX[2:4], epochs=3, optimizer=optimizer)
    theirs, their_curves = run_one_by_one(trials, tmp_path / "alone", images)
    ours, our_curves = run_group(trials, tmp_path / "group", images)
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        assert_same_row(mine, other)
        assert_same_curve(our_curves[trial.trial_id], their_curves[trial.trial_id], TOLERANCE)
        folders = [tmp_path / kind / "trials" / trial.trial_id for kind in ("group", "alone")]
        assert_same_folder(folders[0], folders[1])


def test_a_group_ends_like_trials_that_read_images(manifest: Manifest, tmp_path: Path) -> None:
    """Within 2e-5: the prefix adds in another order for batches of another size."""
    trials = make_trials()
    theirs, their_curves = run_one_by_one(trials, tmp_path / "live", live_images(manifest))
    ours, our_curves = run_group(trials, tmp_path / "group", activation_images(manifest, torch.float32))
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        assert_same_curve(our_curves[trial.trial_id], their_curves[trial.trial_id], 2e-5)
        assert (mine.best_epoch, mine.test_accuracy) == (other.best_epoch, other.test_accuracy)


def test_a_row_that_diverges_fails_as_it_would_alone_and_the_others_do_not_notice(
    manifest: Manifest, tmp_path: Path
) -> None:
    images = activation_images(manifest)
    wild = {"lr": 1e38, "schedule": "constant", "label_smoothing": 0.1, "gradient_clip": 1e30}
    trials = make_trials(mix=[MIX[0], wild, MIX[2], {**wild, "lr": 3e37}], optimizer="sgd")
    rows, curves = run_group(trials, tmp_path / "group", images)
    with pytest.raises(TrialError) as alone:
        run_one_by_one(trials[1:2], tmp_path / "alone", images)
    assert (rows[1].status, rows[1].error) == ("failed", str(alone.value))
    assert read_trial_result(str(tmp_path / "group"), "t1") == rows[1]
    assert rows[3].status == "failed"
    assert not list((tmp_path / "group" / "trials" / "t1").glob("epoch-*"))
    theirs, their_curves = run_one_by_one([trials[0], trials[2]], tmp_path / "alone", images)
    for index, other in zip((0, 2), theirs, strict=True):
        assert_same_row(rows[index], other)
        assert_same_curve(curves[f"t{index}"], their_curves[f"t{index}"], TOLERANCE)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_heads_on_rows_that_the_device_holds_train_like_heads_on_batches(
    optimizer: str, manifest: Manifest, tmp_path: Path
) -> None:
    trials = make_trials(optimizer=optimizer)
    streamed, curves = run_group(trials, tmp_path / "streamed", activation_images(manifest))
    held, same = run_group(trials, tmp_path / "held", holding(activation_images(manifest)))
    assert same.keys() == curves.keys()
    for trial, mine, other in zip(trials, held, streamed, strict=True):
        assert_same_row(mine, other)
        assert_same_curve(same[trial.trial_id], curves[trial.trial_id], TOLERANCE)


def test_a_group_in_bfloat16_ends_like_its_trials_one_by_one_in_it(manifest: Manifest, tmp_path: Path) -> None:
    """Its products are rounded to 8 bits in both, but added up in another order: losses of order 1 within 2 %."""
    images = activation_images(manifest)
    trials = make_trials(mix=MIX[:3], precision="bfloat16", patience=0)
    _, theirs = run_one_by_one(trials, tmp_path / "alone", images)
    rows, ours = run_group(trials, tmp_path / "group", images)
    assert [row.params["precision"] for row in rows] == ["bfloat16"] * 3
    for trial_id, curve in theirs.items():
        assert [m.train_loss for m in ours[trial_id]] == pytest.approx([m.train_loss for m in curve], rel=0.02)


def test_a_row_that_diverges_in_bfloat16_is_repeated_in_float32(manifest: Manifest, tmp_path: Path) -> None:
    images = activation_images(manifest)
    wild = {"lr": 1e38, "schedule": "constant"}
    trials = make_trials(mix=[MIX[0], wild], optimizer="sgd", precision="bfloat16")
    rows, _ = run_group(trials, tmp_path, images)
    assert (rows[0].status, rows[0].note) == ("completed", None)
    assert rows[1].status == "failed"  # in float32 too
    assert rows[1].params["precision"] == "float32"
    assert not list((tmp_path / "groups").rglob("*.*"))


def test_a_group_of_which_every_row_diverges_is_rows_with_reasons(manifest: Manifest, tmp_path: Path) -> None:
    trials = make_trials(mix=[{"lr": 1e38}, {"lr": 3e38}], optimizer="sgd", schedule="constant")
    rows, _ = run_group(trials, tmp_path, activation_images(manifest))
    assert [row.status for row in rows] == ["failed", "failed"]
    assert all("diverged: the training loss of epoch" in (row.error or "") for row in rows)


def test_a_trial_that_has_a_row_keeps_it_and_one_that_failed_is_trained_again(
    manifest: Manifest, tmp_path: Path
) -> None:
    images, trials = activation_images(manifest), make_trials()
    first, _ = run_group(trials, tmp_path, images)
    failed = TrialResult(
        trial_id="t2", backbone="b", weights="none", strategy="s", params={}, seed=0, status="failed", error="killed"
    )
    write_trial_result(str(tmp_path), failed)
    (tmp_path / "trials" / "t2" / "progress.json").unlink()
    again, curves = run_group(trials, tmp_path, images)
    assert set(curves) == {"t2"}
    assert [row for row in again if row.trial_id != "t2"] == [row for row in first if row.trial_id != "t2"]
    assert_same_row(again[2], first[2])


def test_memory_limits_split_a_group_and_its_test_logits_without_changing_a_row(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials()
    whole, _ = run_group(trials, tmp_path / "whole", images)
    monkeypatch.setattr(probe_group, "LARGEST_STACK", 2 * 5 * 4 * (whole[0].num_trainable_params or 0))  # two heads
    monkeypatch.setattr(probe_group, "LARGEST_LOGITS", 1)
    parts, _ = run_group(trials, tmp_path / "parts", images)
    for mine, other in zip(parts, whole, strict=True):
        assert_same_row(mine, other)


def test_heads_that_cannot_be_stacked_train_one_after_the_other(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = activation_images(manifest)
    trials = make_trials(mix=[MIX[0], {"lr": 1e38, "schedule": "constant"}], optimizer="sgd")
    monkeypatch.setattr(probe_group, "fusable_suffix", lambda backbone: "its classifier normalises by the batch")
    rows, curves = run_group(trials, tmp_path / "group", images)
    (alone,), their_curves = run_one_by_one(trials[:1], tmp_path / "alone", images)
    assert_same_row(rows[0], alone)
    assert_same_curve(curves["t0"], their_curves["t0"], 0.0)
    assert rows[1].status == "failed"


def test_a_trial_of_a_group_is_loaded_like_any_other(manifest: Manifest, tmp_path: Path) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "group", images)
    run_one_by_one(trials[:2], tmp_path / "alone", images)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for trial in trials[:2]:
        models = [load_trained(trial, str(tmp_path / kind), images.num_classes).model for kind in ("group", "alone")]
        with torch.no_grad():
            torch.testing.assert_close(models[0](pixels), models[1](pixels), rtol=1e-5, atol=1e-5)


def test_the_seconds_of_the_rows_add_up_to_the_groups(manifest: Manifest, tmp_path: Path) -> None:
    rows, curves = run_group(make_trials(), tmp_path, activation_images(manifest))
    for row in rows:
        assert row.seconds == pytest.approx(sum(metrics.seconds for metrics in curves[row.trial_id]))
    first = [curve[0] for curve in curves.values()]
    assert len({metrics.seconds for metrics in first}) == 1
    assert first[0].images_per_second > 0
