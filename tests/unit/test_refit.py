"""export.refit: the winner trained once more, on the training and the validation images, and exported in its place.

Run: python -m pytest tests/unit/test_refit.py
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.plans import empty_plan
from tlray.config import RunConfig
from tlray.config.search_space import list_trials
from tlray.data.manifest import make_manifest
from tlray.export import bundle as bundle_module
from tlray.export.formats import Agreement
from tlray.inference.predict import find_export
from tlray.report import leaderboard_table, write_report
from tlray.runs.board import write_leaderboard
from tlray.runs.notes import read_notes
from tlray.runs.plan import PlannedRun
from tlray.runs.prepare import Run, load_run, prepare_run
from tlray.runs.refit import read_refit, refit_config, refit_uri, wanted_refit
from tlray.runs.trials import checkpoint_of, read_recorded, read_trial_result, write_trial_result
from tlray.training.epoch import EpochMetrics
from tlray.training.mend import mend
from tlray.training.refit import refit_trial, with_validation
from tlray.training.run_images import run_images
from tlray.training.trial import load_trained, manifest_images, run_trial
from tlray.training.worker import local_worker
from tlray.workflows.exports import export_best

WINNER = "001-test_resnet-full"
PLAN = empty_plan(name="colours", num_classes=3)


def quiet(metrics: EpochMetrics) -> None:
    pass


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a baseline and one trial."""
    return trained_run(image_folder, tmp_path_factory.mktemp("refit"), "full")


def trained_run(image_folder: Path, folder: Path, strategy: str) -> Path:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    config = RunConfig.model_validate(
        {
            "name": "colours",
            "storage": str(folder),
            "data": {"train": str(image_folder), "val_fraction": 0.3, "test_fraction": 0.3},
            "backbones": [network],
            "strategies": [strategy],
            "training": {"epochs": 2, "batch_size": 4, "lr": 0.01, "augmentation": "light"},
            "baseline": {"backbone": network},
            "export": {"refit": True},
        }
    )
    planned = PlannedRun(config, make_manifest(config.data), tuple(list_trials(config)), PLAN)
    run = prepare_run(planned, str(folder / "colours" / "1"))
    for trial in run.trials:
        run_trial(trial, run.uri, local_worker(), run_images(run.uri), quiet)
    return Path(run.uri)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    return load_run(str(shutil.copytree(trained, tmp_path / "colours" / "1")))


@pytest.fixture
def no_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds and is no matter here."""

    def write_formats(model: object, images: object, folder: Path, name: str) -> None:
        for file in ("model.onnx", "model.pt2"):
            (folder / file).write_bytes(b"a format")

    agreement = Agreement(num_images=1, largest_logit=1.0, allowed_difference=1.0, max_abs_difference={"model.pt2": 0})
    monkeypatch.setattr(bundle_module, "write_formats", write_formats)
    monkeypatch.setattr(bundle_module, "check_formats", lambda *arguments: agreement)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    winner = read_trial_result(run.uri, WINNER)
    assert winner is not None
    trial = next(trial for trial in run.trials if trial.trial_id == WINNER)
    return load_trained(refit_config(trial, winner), refit_uri(run.uri), 3).model.state_dict()


def test_the_refit_is_the_winner_trained_on_both_splits_for_the_epochs_that_the_choice_found(
    run: Run, tmp_path: Path
) -> None:
    assert wanted_refit(run.uri, run.config) == WINNER
    result = refit_trial(run, WINNER, local_worker(), quiet)
    assert wanted_refit(run.uri, run.config) is None
    winner = read_trial_result(run.uri, WINNER)
    assert winner is not None
    assert result.epochs == winner.best_epoch
    merged = with_validation(run.manifest)
    num_train = len(run.manifest.split("train")) + len(run.manifest.split("val"))
    assert len(merged.split("train")) == num_train
    assert result.images_seen == num_train * result.epochs
    assert merged.split("test") == run.manifest.split("test")

    trial = refit_config(run.trials[1], winner)
    by_hand = tmp_path / "by-hand"
    images = dataclasses.replace(manifest_images(merged, run.config.data), chooses_epoch=False)
    run_trial(trial, str(by_hand), local_worker(), images, quiet)
    theirs = load_trained(trial, str(by_hand), 3).model.state_dict()
    ours = weights_of(run)
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_refit_killed_after_an_epoch_ends_bit_for_bit_like_an_undisturbed_one(run: Run, trained: Path) -> None:
    undisturbed = load_run(str(shutil.copytree(trained, Path(run.uri).parent / "2")))
    refit_trial(undisturbed, WINNER, local_worker(), quiet)

    def report(metrics: EpochMetrics) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit_trial(run, WINNER, local_worker(), report)
    assert wanted_refit(run.uri, run.config) == WINNER
    refit_trial(run, WINNER, local_worker(), quiet)
    ours, theirs = weights_of(run), weights_of(undisturbed)
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_solved_probe_is_solved_again_on_both_splits_and_exported_so(
    image_folder: Path, tmp_path: Path, no_formats: None
) -> None:
    run = load_run(str(trained_run(image_folder, tmp_path, "linear_probe")))
    (probe,) = (trial for trial in run.trials if not trial.is_baseline)
    assert wanted_refit(run.uri, run.config) == probe.trial_id
    result = refit_trial(run, probe.trial_id, local_worker(), quiet)
    winner = read_trial_result(run.uri, probe.trial_id)
    assert winner is not None
    assert result.params["solver"] == winner.params["solver"] == "lbfgs"
    assert result.epochs == 1
    assert result.images_seen > winner.images_seen
    assert wanted_refit(run.uri, run.config) is None
    (bundle,) = export_best(run, write_leaderboard(run.uri), 1)
    config = json.loads(Path(bundle, "config.json").read_text())
    assert config["params"]["solver"] == "lbfgs"
    assert config["checkpoint_sha256"] == checkpoint_of(refit_uri(run.uri), probe.trial_id)[1]
    exported = load_file(Path(bundle, "model.safetensors"))
    refitted = load_trained(refit_config(probe, winner), refit_uri(run.uri), 3).model.state_dict()
    assert all(exported[key].equal(value) for key, value in refitted.items())


def test_the_export_of_the_winner_is_its_refit_and_says_so(run: Run, no_formats: None) -> None:
    (before,) = export_best(run, write_leaderboard(run.uri), 1)
    refit_trial(run, WINNER, local_worker(), quiet)
    board = write_leaderboard(run.uri)
    assert board.refit is not None
    assert board.champion is not None
    (exported,) = export_best(run, board, 1)
    assert exported == before == find_export(run.uri)
    config = json.loads(Path(exported, "config.json").read_text())
    assert config["checkpoint_sha256"] == checkpoint_of(refit_uri(run.uri), WINNER)[1]
    tensors = load_file(Path(exported, "model.safetensors"))
    assert all(tensors[key].equal(value) for key, value in weights_of(run).items())
    metrics = json.loads(Path(exported, "metrics.json").read_text())
    assert metrics["test_accuracy"] == board.refit.test_accuracy
    assert metrics["val_accuracy"] == board.champion.val_accuracy
    assert "trained once more" in Path(exported, "MODEL_CARD.md").read_text()
    written = Path(exported, "model.safetensors").stat().st_mtime_ns
    assert export_best(run, write_leaderboard(run.uri), 1) == (exported,)
    assert Path(exported, "model.safetensors").stat().st_mtime_ns == written


def test_table_and_report_show_the_refit_beside_the_winner(run: Run) -> None:
    refit_trial(run, WINNER, local_worker(), quiet)
    table = leaderboard_table(write_leaderboard(run.uri))
    assert "=" in list(table.columns[0].cells)
    assert "chosen by the trial's validation score" in " ".join(str(table.caption).split())
    assert 'id="refit"' in Path(write_report(run.uri)).read_text()


def test_a_refit_of_another_number_of_epochs_is_not_the_winners_and_is_trained_again(run: Run) -> None:
    refit_trial(run, WINNER, local_worker(), quiet)
    recorded = read_recorded(run.uri, WINNER)
    assert recorded is not None
    other = 3 - (recorded.result.best_epoch or 0)
    changed = recorded.result.model_copy(update={"best_epoch": other})
    write_trial_result(run.uri, changed, recorded.files)
    assert read_refit(run.uri, changed) is None
    assert write_leaderboard(run.uri).refit is None
    assert refit_trial(run, WINNER, local_worker(), quiet).epochs == other
    assert wanted_refit(run.uri, run.config) is None


@pytest.mark.parametrize("name", ["result.json", "test_predictions.parquet", "progress.json", "*.safetensors"])
def test_a_damaged_refit_is_mended_by_a_resume_with_a_note(run: Run, name: str) -> None:
    refit_trial(run, WINNER, local_worker(), quiet)
    before = weights_of(run)
    for file in Path(refit_uri(run.uri), "trials", WINNER).glob(name):
        file.write_bytes(b"{}")
    mend(run)
    assert any("refit" in note for note in read_notes(run.uri))
    if wanted_refit(run.uri, run.config) is not None:
        refit_trial(run, WINNER, local_worker(), quiet)
    after = weights_of(run)
    assert all(after[key].equal(before[key]) for key in before)


def test_nothing_is_trained_again_where_it_is_not_asked_for_or_trials_are_still_to_be_tried(run: Run) -> None:
    off = run.config.model_copy(update={"export": run.config.export.model_copy(update={"refit": False})})
    assert wanted_refit(run.uri, off) is None
    lost = read_trial_result(run.uri, "000-baseline")
    assert lost is not None
    none = {name: None for name in type(lost).model_fields if name.startswith(("val_", "test_"))}
    failed = lost.model_copy(update={**none, "status": "failed", "error": "node lost", "may_pass": True})
    write_trial_result(run.uri, failed)
    assert wanted_refit(run.uri, run.config) is None
