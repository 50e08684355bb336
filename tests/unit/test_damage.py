"""Damage to any file of a run folder: noticed, undone with a note, or without a difference; never silent, no traceback.

`python -m tests.flips` does the same with 200 flips of each kind of file.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import flips
from tests.flip_runs import make_config, make_finished, make_interrupted
from tlray.errors import DamagedError, StorageError
from tlray.report.html import write_report
from tlray.runs.board import make_leaderboard
from tlray.runs.notes import read_notes
from tlray.runs.prepare import load_run
from tlray.runs.trials import checkpoint_of, load_results, read_trial_result
from tlray.storage.sealed import read_document, sealed, unsealed, write_document
from tlray.training.checkpoint import TrialFolder
from tlray.training.mend import mend
from tlray.training.run_images import run_images
from tlray.training.trial import load_trained, run_trial
from tlray.training.worker import local_worker

NUM_FLIPS = 5
# A file that is gone as if it had not been written yet: what comes of it is what comes of a kill at that moment.
NOT_WRITTEN_YET = {"notes/*.txt", "trials/*/result.json", "budget.json", "activations.json"}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one byte short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "something else": lambda file: file.write_bytes(b'{"sha256": ""}'),
    "missing": lambda file: file.unlink(),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    config = make_config(tmp_path_factory.mktemp("runs"))
    return {"finished": make_finished(config), "interrupted": make_interrupted(config)}


@pytest.fixture
def interrupted(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["interrupted"], tmp_path / runs["interrupted"].name))


@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_a_flipped_bit_in_any_file_of_a_run_is_noticed_or_makes_no_difference(
    runs: dict[str, Path], which: str
) -> None:
    kinds = set()
    for kind, outcomes, said in flips.flip_all(runs[which], NUM_FLIPS, seed=0):
        kinds.add(kind)
        assert not any(outcomes[name] for name in flips.BAD), (kind, outcomes, said)
    missing = {
        "finished": {"groups/*/progress.json", "groups/*/state-*.safetensors", flips.STEP},
        "interrupted": {"ranking.json", "budget.json", "activations.json", "results.jsonl", "leaderboard.json"}
        | {"notes/*.txt", "lease.json"},
    }[which]
    assert kinds == flips.READERS.keys() - missing - {"retrain.json"}


@pytest.mark.parametrize("which", ["finished", "interrupted"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_emptied_replaced_or_missing_file_of_a_run_is_noticed_or_makes_no_difference(
    runs: dict[str, Path], tmp_path: Path, which: str, damage: str
) -> None:
    copy = flips.Copy(runs[which], tmp_path)
    for kind, files in flips.by_kind(copy).items():
        if damage == "missing" and kind in NOT_WRITTEN_YET:
            continue
        for file in files:
            expected = flips.READERS[kind](copy.run, file)
            copy.restore()
            found, why = flips.outcome(copy, file, flips.READERS[kind], expected, DAMAGES[damage])
            assert found not in flips.BAD, (file, found, why)


def train_on(run: Path) -> None:
    """All trials in this process, as a resume would."""
    loaded = load_run(str(run))
    mend(loaded)
    for trial in loaded.trials:
        run_trial(trial, str(run), local_worker(), run_images(str(run)), lambda metrics: None)


def scores(run: Path) -> list[dict]:
    ignore = {"seconds": 0, "peak_memory_bytes": 0, "checkpoint": None}
    return [row.model_dump() | ignore for row in load_results(str(run))]


def test_a_trial_whose_checkpoints_are_damaged_goes_back_and_ends_like_an_undisturbed_one(
    runs: dict[str, Path], interrupted: Path, tmp_path: Path
) -> None:
    undisturbed = Path(shutil.copytree(interrupted, tmp_path / "undisturbed" / interrupted.name))
    train_on(undisturbed)
    trial = interrupted / "trials" / load_run(str(interrupted)).trials[1].trial_id
    (step,) = trial.glob("*-step-*")
    flips.flip(random.Random(0))(step)
    train_on(interrupted)
    (note,) = read_notes(str(interrupted))
    assert note == f"trials/{trial.name}: {step.name} is damaged or missing; the trial goes on from epoch 2"
    assert scores(interrupted) == scores(undisturbed)


def test_a_trial_without_any_whole_checkpoint_starts_again(interrupted: Path) -> None:
    trial = interrupted / "trials" / load_run(str(interrupted)).trials[1].trial_id
    for checkpoint in trial.glob("*.safetensors"):
        checkpoint.write_bytes(b"")
    folder = TrialFolder(str(trial))
    folder.go_back()
    assert folder.load_progress().epoch == 0
    assert read_notes(str(interrupted))[0].endswith("the trial starts again")


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_row_whose_predictions_are_damaged_is_made_again_and_is_the_same(
    runs: dict[str, Path], tmp_path: Path, split: str
) -> None:
    run = Path(shutil.copytree(runs["finished"], tmp_path / runs["finished"].name))
    before, leaderboard = scores(run), make_leaderboard(str(run))
    for predictions in run.glob(f"trials/*/{split}_predictions.parquet"):
        predictions.write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match="`tlray resume` scores the trial again"):
        make_leaderboard(str(run))
    train_on(run)
    assert scores(run) == before
    again = make_leaderboard(str(run))
    assert [(row.rank, row.gain, row.gain_low) for row in again.rows] == [
        (row.rank, row.gain, row.gain_low) for row in leaderboard.rows
    ]


def test_a_trial_whose_checkpoint_an_export_finds_damaged_is_trained_again_by_a_resume(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["finished"], tmp_path / runs["finished"].name))
    before, loaded = scores(run), load_run(str(run))
    baseline = loaded.trials[0]
    uri, _ = checkpoint_of(str(run), baseline.trial_id)
    flips.flip(random.Random(0))(Path(uri))
    mend(loaded)  # nobody exports a baseline
    assert read_trial_result(str(run), baseline.trial_id) is not None
    with pytest.raises(DamagedError, match="is damaged: `tlray resume` goes back"):
        load_trained(baseline, str(run), 2)
    mend(loaded)
    assert read_trial_result(str(run), baseline.trial_id) is None
    train_on(run)
    assert scores(run) == before
    load_trained(baseline, str(run), 2)


def test_a_report_is_written_while_a_progress_is_damaged_and_refused_where_the_plan_is(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["finished"], tmp_path / "run"))
    for progress in run.glob("trials/*/progress.json"):
        progress.write_text("{}")
    assert "Learning curves" in Path(write_report(str(run))).read_text()
    (run / "plan.json").write_text("{}")
    with pytest.raises(DamagedError) as refused:
        write_report(str(run))
    assert str(refused.value) == (
        f"{run}/plan.json is damaged: restore it from a copy, or start a new run with `tlray run {run}/config.yaml`"
    )


def test_a_completed_trial_is_not_trained_again_where_its_row_says_failed_elsewhere(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["finished"], tmp_path / "run"))
    trial_id = load_run(str(run)).trials[1].trial_id
    result = read_trial_result(str(run), trial_id)
    assert result is not None
    failed = {name: None for name in type(result).model_fields if name.startswith(("val_", "test_"))}
    line = sealed(result.model_dump(mode="json") | failed | {"status": "failed", "error": "node lost"})
    (run / "results.jsonl").write_text(line + "\n")
    mend(load_run(str(run)))
    lines = [unsealed(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert {line["trial_id"]: line["status"] for line in lines}[trial_id] == "completed"
    assert [row.status for row in make_leaderboard(str(run)).rows] == ["completed", "completed"]


def test_a_folder_of_another_layout_or_of_none_is_refused_by_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["finished"], tmp_path / "run"))
    document = read_document(str(run / "format"), "")
    write_document(str(run / "format"), document | {"layout": 2})
    with pytest.raises(StorageError, match="layout 2, and this version of tlray reads layout 3: use the version that"):
        load_run(str(run))
    (run / "format").unlink()
    with pytest.raises(StorageError, match="has no file `format`: an earlier version of tlray made it") as refused:
        load_run(str(run))
    assert refused.value.exit_code == 2
    (run / "manifest.parquet").unlink()
    with pytest.raises(StorageError, match="was interrupted before its first trial"):
        load_run(str(run))
    (run / "config.yaml").unlink()
    with pytest.raises(StorageError, match="is not a run folder"):
        load_run(str(run))
