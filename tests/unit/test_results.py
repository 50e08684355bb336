"""results.py and runs/: the rows of trials and the leaderboard made of them.

Run: python -m pytest tests/unit/test_results.py
"""

import io
import json
import math
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from tlray.errors import TlrayError
from tlray.runs.board import append_result, load_leaderboard, write_leaderboard
from tlray.runs.notes import read_notes
from tlray.runs.predictions import load_correctness
from tlray.runs.results import TrialResult, build_leaderboard, paired_gain, ranked
from tlray.runs.trials import (
    PREDICTION_FILES,
    delete_trial_result,
    load_recorded,
    load_results,
    read_trial_result,
    trial_uri,
    write_trial_result,
)
from tlray.storage.sealed import write_checked, write_document


def row(trial_id: str, val_accuracy: float = 0.5, **changes: Any) -> TrialResult:
    fields: dict[str, Any] = {
        "trial_id": trial_id,
        "backbone": "timm/test_resnet",
        "weights": "none",
        "strategy": "full",
        "params": {"lr": 0.001},
        "seed": 0,
        "status": "completed",
        "val_accuracy": val_accuracy,
        "val_loss": 1.0,
        "test_accuracy": 0.5,
    }
    return TrialResult(**(fields | changes))


def failed(trial_id: str, **changes: Any) -> TrialResult:
    fields = {"status": "failed", "error": "out of memory", "val_loss": None, "test_accuracy": None}
    return row(trial_id, None, **(fields | changes))  # type: ignore[arg-type]


def write_predictions(run_uri: str, trial_id: str, correct: np.ndarray) -> dict[str, str]:
    order = np.random.default_rng(0).permutation(len(correct))  # as several workers would leave them
    table = pa.table({"row": order, "label": np.zeros(len(correct), int), "predicted": (~correct[order]).astype(int)})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    name = PREDICTION_FILES["test"]
    return {name: write_checked(trial_uri(run_uri, trial_id, name), sink.getvalue())}


def test_rows_come_back_as_they_were_written_in_the_order_of_their_trials(tmp_path):
    rows = [row("001-a", 0.7, params={"lr": 1e-5, "augmentation": "light"}), failed("002-b")]
    for result in reversed(rows):
        write_trial_result(str(tmp_path), result)
    assert load_results(str(tmp_path)) == rows


def test_a_run_without_rows_has_no_results(tmp_path):
    assert load_results(str(tmp_path)) == []


def test_results_jsonl_holds_the_last_row_of_each_trial_and_is_not_believed(tmp_path):
    for result in (failed("001-a"), row("002-b"), row("001-a", 0.9)):
        append_result(str(tmp_path), result)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["trial_id"], line["status"]) for line in lines] == [("002-b", "completed"), ("001-a", "completed")]
    assert load_results(str(tmp_path)) == []


def test_a_completed_trial_does_not_stay_failed_in_what_is_derived(tmp_path):
    """Its row was written, and the driver killed before it could say so in results.jsonl."""
    run_uri = str(tmp_path)
    append_result(run_uri, failed("001-a"))
    write_trial_result(run_uri, row("001-a"), write_predictions(run_uri, "001-a", np.array([True, False])))
    assert [one.status for one in write_leaderboard(run_uri).rows] == ["completed"]
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "completed"


def test_torn_and_damaged_lines_are_dropped_with_a_note(tmp_path):
    run_uri = str(tmp_path)
    for trial_id in ("001-a", "002-b"):
        write_trial_result(run_uri, failed(trial_id))
        append_result(run_uri, failed(trial_id))
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])  # torn by a kill
    append_result(run_uri, failed("003-c"))
    assert [json.loads(line)["trial_id"] for line in path.read_text().splitlines()] == ["001-a", "003-c"]
    path.write_text(whole.replace("out of memory", "out of mercury", 1))
    write_leaderboard(run_uri)
    assert path.read_text() == whole
    (note,) = read_notes(run_uri)
    assert note == "results.jsonl: a torn or damaged line was dropped, and the rows made again from trials/"


def test_a_row_with_an_unknown_field_is_an_error_that_names_it(tmp_path):
    document = row("001-a").model_dump() | {"colour": "red"}
    write_document(str(tmp_path / "trials/001-a/result.json"), document)
    with pytest.raises(TlrayError, match=r"result\.json: not a trial's row: colour"):
        load_results(str(tmp_path))


def test_another_trials_row_is_not_taken_for_this_ones(tmp_path):
    write_trial_result(str(tmp_path), row("001-a"))
    shutil.copytree(tmp_path / "trials/001-a", tmp_path / "trials/002-b")
    with pytest.raises(TlrayError, match=r"002-b/result\.json is damaged: it is the row of 001-a"):
        read_trial_result(str(tmp_path), "002-b")


def test_a_failed_trial_cannot_have_a_score_nor_lack_a_reason():
    with pytest.raises(ValueError, match="a failed trial has a reason and no score"):
        failed("001-a", test_accuracy=0.0)
    with pytest.raises(ValueError, match="a failed trial has a reason and no score"):
        failed("001-a", error=None)


def test_a_trial_that_did_not_fail_must_have_its_scores():
    with pytest.raises(ValueError, match="a stopped trial has a validation and a test accuracy"):
        row("001-a", status="stopped", test_accuracy=None)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_number_becomes_none_and_survives_the_file(tmp_path, loss):
    write_trial_result(str(tmp_path), row("001-a", val_loss=loss))
    assert load_results(str(tmp_path))[0].val_loss is None


def test_a_trials_own_row_is_absent_until_written_and_after_it_is_deleted(tmp_path):
    run_uri = str(tmp_path)
    assert read_trial_result(run_uri, "001-a") is None
    write_trial_result(run_uri, row("001-a"))
    assert read_trial_result(run_uri, "001-a") == row("001-a")
    delete_trial_result(run_uri, "001-a")
    assert read_trial_result(run_uri, "001-a") is None


def test_rows_are_ranked_by_accuracy_then_loss_then_id_and_failed_ones_come_last_without_rank():
    rows = [
        failed("004-d"),
        row("003-c", 0.8, val_loss=0.3),
        row("002-b", 0.8, val_loss=0.2),
        row("001-a", 0.8, val_loss=0.2),
        row("000-baseline", 0.9, is_baseline=True),
        row("005-e", 0.8, val_loss=math.inf),
    ]
    correct = np.array([True, False])
    board = build_leaderboard(rows, {r.trial_id: correct for r in rows if r.status != "failed"})
    assert [(r.trial_id, r.rank) for r in board.rows] == [
        ("000-baseline", 1),
        ("001-a", 2),
        ("002-b", 3),
        ("003-c", 4),
        ("005-e", 5),
        ("004-d", None),
    ]
    assert board.baseline is not None
    assert board.baseline.trial_id == "000-baseline"
    assert board.champion is not None
    assert board.champion.trial_id == "001-a"
    assert board.num_test_images == 2
    assert board.no_gain_reason is None


def test_the_gain_is_the_difference_of_the_test_accuracies():
    generator = np.random.default_rng(1)
    ours, baseline = generator.random(200) < 0.9, generator.random(200) < 0.7
    rows = [
        row("000-baseline", 0.7, is_baseline=True, test_accuracy=baseline.mean()),
        row("001-a", 0.9, test_accuracy=ours.mean()),
        failed("002-b"),
    ]
    board = build_leaderboard(rows, {"000-baseline": baseline, "001-a": ours}, seed=3)
    best, reference, broken = board.rows
    assert best.gain == pytest.approx(ours.mean() - baseline.mean())
    assert best.gain_low < best.gain < best.gain_high
    assert (reference.gain, reference.gain_low, reference.gain_high) == (None, None, None)
    assert broken.gain is None
    assert board == build_leaderboard(rows[::-1], {"000-baseline": baseline, "001-a": ours}, seed=3)


@pytest.mark.parametrize(("num_images", "accuracy", "reference"), [(80, 0.95, 0.70), (400, 0.82, 0.80)])
def test_the_interval_is_that_of_scipys_paired_percentile_bootstrap(num_images, accuracy, reference):
    generator = np.random.default_rng(num_images)
    ours, baseline = generator.random(num_images) < accuracy, generator.random(num_images) < reference
    gain, low, high = paired_gain(ours, baseline, seed=0)

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    theirs = scipy.stats.bootstrap(
        (ours.astype(float), baseline.astype(float)),
        difference,
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    error = (ours.astype(int) - baseline).std() / math.sqrt(num_images)
    assert gain == pytest.approx(ours.mean() - baseline.mean())
    # a resampled gain is a multiple of 1 / num_images, and the ends of 10,000 resamples vary by about 0.03 errors
    assert low == pytest.approx(theirs.low, abs=0.1 * error + 1 / num_images)
    assert high == pytest.approx(theirs.high, abs=0.1 * error + 1 / num_images)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_the_interval_holds_the_true_gain_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        ours, baseline = generator.random(150) < 0.85, generator.random(150) < 0.75
        _, low, high = paired_gain(ours, baseline, seed, num_resamples=1000)
        hits += low <= 0.10 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_equal_predictions_give_a_gain_of_exactly_zero():
    correct = np.array([True, False, True])
    assert paired_gain(correct, correct, seed=0) == (0.0, 0.0, 0.0)


def test_predictions_over_different_numbers_of_images_are_refused():
    with pytest.raises(TlrayError, match="predictions for 2 and 3 test images cannot be paired"):
        paired_gain(np.ones(2, bool), np.ones(3, bool), seed=0)


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [([failed("000-baseline", is_baseline=True)], "the baseline failed: out of memory"), ([], "not ended yet")],
)
def test_without_the_baselines_score_there_is_no_gain_and_the_leaderboard_says_why(baseline, reason):
    board = build_leaderboard([*baseline, row("001-a")], {"001-a": np.array([True])})
    assert board.rows[0].trial_id == "001-a"
    assert board.rows[0].gain is None
    assert board.no_gain_reason is not None
    assert reason in board.no_gain_reason


def test_the_leaderboard_is_made_from_the_run_folder_and_read_back(tmp_path):
    run_uri = str(tmp_path)
    correct = {"000-baseline": np.array([True, False, False, False]), "001-a": np.array([True, True, True, False])}
    rows = {
        "000-baseline": row("000-baseline", 0.3, is_baseline=True, test_accuracy=0.25),
        "001-a": row("001-a", 0.8, test_accuracy=0.75),
    }
    write_trial_result(run_uri, failed("002-b"))
    for trial_id, bools in correct.items():
        write_trial_result(run_uri, rows[trial_id], write_predictions(run_uri, trial_id, bools))
    for trial_id, recorded in load_recorded(run_uri).items():
        if trial_id in correct:
            assert load_correctness(run_uri, recorded).tolist() == correct[trial_id].tolist()
    board = write_leaderboard(run_uri, seed=5)
    assert [r.trial_id for r in board.rows] == ["001-a", "000-baseline", "002-b"]
    assert board.rows[0].gain == 0.5
    assert load_leaderboard(run_uri) == board


def test_trials_within_one_standard_error_of_the_highest_accuracy_are_ordered_by_calibrated_loss() -> None:
    """Of 100 images at 0.9, one standard error is 0.030."""
    rows = [
        row(name, accuracy, val_calibrated_loss=loss, num_val_images=100)
        for name, accuracy, loss in (("a", 0.90, 0.5), ("b", 0.88, 0.3), ("c", 0.86, 0.1), ("d", 0.88, 0.4))
    ]
    assert [one.trial_id for one in ranked(rows)] == ["b", "d", "a", "c"]
    many = [one.model_copy(update={"num_val_images": 10_000}) for one in rows]
    assert [one.trial_id for one in ranked(many)] == ["a", "b", "d", "c"]


def test_without_calibrated_losses_trials_are_ordered_by_accuracy_then_loss() -> None:
    rows = [row("a", 0.88, val_loss=0.2), row("b", 0.9, val_loss=0.5), row("c", 0.9, val_loss=0.4)]
    assert [one.trial_id for one in ranked(rows)] == ["c", "b", "a"]
    counted = [one.model_copy(update={"num_val_images": 10}) for one in rows]
    assert [one.trial_id for one in ranked(counted)] == ["c", "b", "a"]
