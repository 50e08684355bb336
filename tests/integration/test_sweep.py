"""The sweep on a real Ray: early stopping, equal numbers in and out of Ray Train, killed workers, failed trials."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tlray import storage
from tlray.config import RunConfig
from tlray.runs.board import load_leaderboard
from tlray.runs.prepare import load_run, new_run_uri
from tlray.runs.results import TrialResult
from tlray.runs.trials import load_results
from tlray.training.run_images import run_images
from tlray.training.trial import manifest_images, run_trial, trial_folder
from tlray.training.worker import local_worker
from tlray.workflows.progress import SweepProgress
from tlray.workflows.run import resume, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
MakeConfig = Callable[..., RunConfig]
LONG = {"epochs": 200}
BY_GRADIENTS = {"strategy": "linear_probe", "solver": "gradient"}
ON_IMAGES = {"strategies": [BY_GRADIENTS], "activations": {"materialise": "never"}}


def sweep(config: RunConfig) -> tuple[str, dict[str, TrialResult]]:
    run_uri = new_run_uri(config)
    run(config, run_uri, Console(file=io.StringIO()))
    return run_uri, {result.trial_id: result for result in load_results(run_uri)}


def test_a_run_leaves_every_file_of_the_run_folder_and_a_row_for_each_trial(make_config: MakeConfig) -> None:
    """With the winner's second training as a task of its own."""
    run_uri, results = sweep(make_config(strategies=["linear_probe", "full"], export={"top_k": 1, "refit": True}))
    board = load_leaderboard(run_uri)
    assert board.refit is not None
    assert board.champion is not None
    assert board.refit.trial_id == board.champion.trial_id
    names = {path.relative_to(run_uri).parts[0] for path in Path(run_uri).rglob("*")}
    assert names >= {"config.yaml", "manifest.parquet", "plan.json", "results.jsonl", "leaderboard.json", "DONE"}
    assert names >= {"bad_images.jsonl", "exports", "report.html", "trials"}
    assert {result.status for result in results.values()} == {"completed"}
    assert sum(result.is_baseline for result in results.values()) == 1
    for trial_id, result in results.items():
        history = (Path(run_uri) / "trials" / trial_id / "history.jsonl").read_text().splitlines()
        assert len(history) == result.epochs
        best = json.loads(history[result.best_epoch - 1])
        assert best["val_accuracy"] == result.val_accuracy
        assert storage.exists(result.checkpoint)


def test_the_tune_actor_and_no_ray_at_all_give_the_same_numbers(make_config: MakeConfig, tmp_path: Path) -> None:
    assert_like_no_ray(make_config(**ON_IMAGES), tmp_path)


@pytest.mark.slow  # two workers of Ray Train do the same below, to 1e-4
def test_ray_train_with_one_worker_and_no_ray_at_all_give_the_same_numbers(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    assert_like_no_ray(make_config(**ON_IMAGES, sweep={"scheduler": "fifo", "trainer": "ray_train"}), tmp_path)


def assert_like_no_ray(config: RunConfig, tmp_path: Path) -> None:
    run_uri, results = sweep(config)
    loaded = load_run(run_uri)
    images = manifest_images(loaded.manifest, config.data)
    for trial in loaded.trials:
        alone = run_trial(trial, str(tmp_path / "alone"), local_worker(), images, lambda metrics: None)
        assert alone is not None
        row = results[trial.trial_id]
        expected = (alone.val_accuracy, alone.val_loss, alone.test_accuracy, alone.best_epoch)
        assert (row.val_accuracy, row.val_loss, row.test_accuracy, row.best_epoch) == expected


def test_two_workers_train_like_one(make_config: MakeConfig, tmp_path: Path) -> None:
    """Frozen BatchNorm and LayerNorm see no batch, so only the order of additions differs: losses agree to 1e-4.

    Augmentation and order do not depend on the number of workers, which is why the tolerance can be that small.
    """
    vit = {"id": "timm/test_vit", "weights": "none", "input_size": 32}
    fields = {
        "backbones": [vit],
        "strategies": [BY_GRADIENTS],
        "baseline": {"backbone": vit},  # scratch trains all
        "activations": {"materialise": "always", "fuse_probes": False},
        "sweep": {"scheduler": "fifo", "workers_per_trial": 2},
    }
    run_uri, results = sweep(make_config(**fields))
    images, trials = run_images(run_uri), load_run(run_uri).trials
    assert results.keys() == {trial.trial_id for trial in trials}
    for trial in trials:
        two = results[trial.trial_id]
        one = run_trial(trial, str(tmp_path / "one"), local_worker(), images, lambda metrics: None)
        assert one is not None
        assert two.status == "completed"
        assert two.val_loss == pytest.approx(one.val_loss, abs=1e-4)
        assert two.val_accuracy == one.val_accuracy
        assert two.images_seen == one.images_seen
        assert len(trial_folder(run_uri, trial.trial_id).load_progress().history) == one.epochs  # none counted twice


def test_asha_stops_trials_early_and_a_stopped_trial_frees_its_cpu_at_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline holds one of the two CPUs all the while, so every other trial waits for the one before it."""
    events: list[tuple[str, str]] = []

    class Recorder(SweepProgress):
        def trial_started(self, trial_id: str) -> None:
            events.append(("started", trial_id))
            super().trial_started(trial_id)

        def trial_stopped(self, trial_id: str) -> None:
            events.append(("stopped", trial_id))
            super().trial_stopped(trial_id)

        def trial_ended(self, result: TrialResult) -> None:
            events.append(("ended", result.trial_id))
            super().trial_ended(result)

    monkeypatch.setattr("tlray.workflows.run.SweepProgress", Recorder)
    config = make_config(
        training={"epochs": 8, "batch_size": 4, "augmentation": "none"},
        search_space={"lr": {"grid": [0.01, 0.003, 1e-7, 1.1e-7, 1.2e-7, 1.3e-7]}},
        baseline={"backbone": {"id": "timm/test_resnet", "weights": "none", "input_size": 32}, "training": LONG},
        sweep={"scheduler": "asha", "grace_period": 1, "reduction_factor": 2, "max_concurrent_trials": 2},
    )
    _, results = sweep(config)
    stopped = [row for row in results.values() if row.status == "stopped"]
    assert stopped
    assert all(row.epochs < 8 and row.test_accuracy is not None for row in stopped)
    baseline = next(row for row in results.values() if row.is_baseline)
    assert baseline.status == "completed"
    starts = [index for index, (event, _) in enumerate(events) if event == "started"]
    assert len(starts) == 7
    assert max(starts) < events.index(("ended", baseline.trial_id))
    assert any(event == "stopped" for event, _ in events[: max(starts)])


def test_a_diverging_trial_is_a_failed_row_with_a_reason_and_no_score(make_config: MakeConfig) -> None:
    config = make_config(
        search_space={"lr": {"grid": [0.003, 1e6]}},
        training={"epochs": 2, "batch_size": 8, "optimizer": "sgd"},
    )
    run_uri, results = sweep(config)
    failed = [row for row in results.values() if row.status == "failed"]
    assert [row.params["lr"] for row in failed] == [1e6]
    assert "lower lr" in (failed[0].error or "")
    assert failed[0].val_accuracy is None
    assert failed[0].test_accuracy is None
    leaderboard = json.loads((Path(run_uri) / "leaderboard.json").read_text())
    assert leaderboard["rows"][-1]["trial_id"] == failed[0].trial_id


def test_a_worker_killed_in_mid_training_costs_an_epoch_at_most(make_config: MakeConfig) -> None:
    fields = {"training": {"epochs": 30, "batch_size": 8}, "sweep": {"scheduler": "fifo", "max_failures": 3}}
    _, undisturbed = sweep(make_config(**fields))
    killed: list[int] = []

    def kill_one_trial() -> None:
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    if "ImplicitFunc.train" in "".join(process.cmdline()[:1]) and process.cpu_times().user > 2:
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one_trial, daemon=True)
    killer.start()
    _, disturbed = sweep(make_config(**fields))
    killer.join(timeout=1)
    assert killed
    for trial_id, row in undisturbed.items():
        assert disturbed[trial_id].status == "completed"
        assert disturbed[trial_id].val_loss == row.val_loss
        assert disturbed[trial_id].images_seen == row.images_seen


def test_a_resume_of_a_finished_run_trains_nothing(make_config: MakeConfig) -> None:
    run_uri, results = sweep(make_config())
    before = (Path(run_uri) / "results.jsonl").read_bytes()
    resume(run_uri, Console(file=io.StringIO()))
    assert (Path(run_uri) / "results.jsonl").read_bytes() == before
    assert results


def test_a_sweep_that_tune_gives_up_goes_on_with_what_is_left(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune's step raises a RuntimeError when Ray kills a trial's process because the node runs out of memory."""
    from ray.tune.execution.tune_controller import TuneController

    step, broken = TuneController.step, []

    def broken_once(controller: TuneController) -> None:
        step(controller)
        running = [trial for trial in controller.get_trials() if trial.last_result]
        if running and not broken:
            broken.append(len(running))
            raise RuntimeError("Caught unexpected exception: a worker was killed\nby the memory monitor")

    monkeypatch.setattr(TuneController, "step", broken_once)
    run_uri, results = sweep(make_config(sweep={"scheduler": "fifo", "max_failures": 1}, training={"epochs": 20}))
    assert broken
    assert {row.status for row in results.values()} == {"completed"}
    assert storage.exists(f"{run_uri}/DONE")
