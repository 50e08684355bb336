"""A group of linear probes that is killed ends like an undisturbed one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from image_splits import split_folders
from probe_runs import DIFFERS, activation_images, assert_same_row, make_trials, run_group, run_one_by_one
from safetensors.torch import load_file

from tlray.config import DataConfig, TrialConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.runs.trials import read_trial_result
from tlray.training import probe_group, probe_loop
from tlray.training.epoch import EpochMetrics
from tlray.training.probe_group import run_probe_group
from tlray.training.record import load_history
from tlray.training.worker import local_worker


@pytest.fixture(scope="module")
def manifest(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folders = split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=3, test=3)
    return make_manifest(DataConfig(**folders))


def assert_equal_runs(ours: Path, theirs: Path, trials: Sequence[TrialConfig]) -> None:
    """Bit for bit, but for what tells of time and memory."""
    for trial in trials:
        mine, other = (read_trial_result(str(run), trial.trial_id) for run in (ours, theirs))
        assert mine is not None
        assert other is not None
        assert mine.checkpoint is not None
        assert mine.val_calibrated_loss == pytest.approx(other.val_calibrated_loss, rel=1e-4)  # of other batches
        update = {**DIFFERS, "checkpoint": None, "val_calibrated_loss": None}
        assert mine.model_copy(update=update) == other.model_copy(update=update)
        name = mine.checkpoint.rpartition("/")[2]
        tensors = [load_file(run / "trials" / trial.trial_id / name) for run in (ours, theirs)]
        assert all(tensor.equal(tensors[1][key]) for key, tensor in tensors[0].items())
        curves = []
        for run in (ours, theirs):
            history = load_history(str(run / "trials" / trial.trial_id))
            curves.append([dataclasses.replace(epoch, seconds=0, images_per_second=0) for epoch in history])
        assert curves[0] == curves[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_group_killed_at_any_epoch_ends_bit_for_bit_like_an_undisturbed_one(
    optimizer: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials(optimizer=optimizer)
    run_group(trials, tmp_path / "whole", images)
    monkeypatch.setattr(probe_loop, "COMMIT_SECONDS", 0.0)
    run = tmp_path / "killed"
    begun = []
    for epoch in (1, 3, 5):

        def report(trial_id: str, metrics: EpochMetrics, epoch: int = epoch) -> None:
            begun.append(metrics.epoch)
            if metrics.epoch == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_probe_group(trials, str(run), local_worker(), images, report)
        states = list((run / "groups" / "t0").glob("state-*"))
        assert len(states) == min(2, begun[-1]), "the state and the one before it are kept"
    _, curves = run_group(trials, run, images)
    assert curves == {}, "all that was left was to write the rows"
    assert sorted(set(begun)) == [1, 2, 3, 4, 5]
    assert begun.count(1) == 1, "no epoch is trained twice"
    assert_equal_runs(run, tmp_path / "whole", trials)


def test_a_group_killed_between_two_commits_repeats_what_came_after_the_last_one(
    manifest: Manifest, tmp_path: Path
) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "whole", images)

    def report(trial_id: str, metrics: EpochMetrics) -> None:
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe_group(trials, str(tmp_path / "killed"), local_worker(), images, report)
    run_group(trials, tmp_path / "killed", images)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole", trials)


def test_a_group_killed_while_it_writes_rows_trains_nothing_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "whole", images)
    run = tmp_path / "killed"

    def write_predictions(folder_uri: str, *arguments: Any) -> Any:
        if folder_uri.endswith("t3"):
            raise KeyboardInterrupt
        return original(folder_uri, *arguments)

    original = probe_group.write_predictions
    with monkeypatch.context() as patch:
        patch.setattr(probe_group, "write_predictions", write_predictions)
        with pytest.raises(KeyboardInterrupt):
            run_group(trials, run, images)
    assert read_trial_result(str(run), "t1") is not None
    unfinished = [trial for trial in trials if read_trial_result(str(run), trial.trial_id) is None]
    assert unfinished[0] is trials[0], "the group's checkpoint goes by the first trial's name"
    _, curves = run_group(unfinished, run, images)  # a resume asks for what has no row
    assert curves == {}
    assert_equal_runs(run, tmp_path / "whole", trials)
    assert not list((run / "groups").rglob("*.*"))


def test_a_group_is_resumed_with_the_rows_that_are_asked_for(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its trials, in another order, and one that it did not hold."""
    images, trials = activation_images(manifest), make_trials()
    monkeypatch.setattr(probe_loop, "COMMIT_SECONDS", 0.0)

    def report(trial_id: str, metrics: EpochMetrics) -> None:
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe_group(trials[:4], str(tmp_path / "killed"), local_worker(), images, report)
    asked = [trials[index] for index in (0, 4, 2, 1)]
    rows, curves = run_group(asked, tmp_path / "killed", images)
    assert [row.trial_id for row in rows] == ["t0", "t4", "t2", "t1"]
    assert [metrics.epoch for metrics in curves["t0"]] == [metrics.epoch for metrics in curves["t2"]] == [4, 5]
    assert curves["t4"][0].epoch == 1
    theirs, _ = run_one_by_one(asked, tmp_path / "alone", images)
    for mine, other in zip(rows, theirs, strict=True):
        assert_same_row(mine, other)
