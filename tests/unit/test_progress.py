"""What a sweep prints while it runs."""

import io
import re

from rich.console import Console

from tlray.config import BackboneConfig, Recipe, StrategyConfig, TrialConfig
from tlray.runs.results import TrialResult
from tlray.workflows.progress import SweepProgress


def trial(trial_id: str, epochs: int = 4) -> TrialConfig:
    return TrialConfig(
        trial_id=trial_id,
        backbone=BackboneConfig(id="timm/a"),
        strategy=StrategyConfig(strategy="full"),
        recipe=Recipe(epochs=epochs),
        seed=0,
    )


def result(trial_id: str, **fields: object) -> TrialResult:
    scores = {"val_accuracy": 0.5, "test_accuracy": 0.25} if fields.get("status") != "failed" else {}
    row = {"backbone": "timm/a", "weights": "none", "strategy": "full", "params": {}, "seed": 0, "status": "completed"}
    return TrialResult.model_validate({"trial_id": trial_id, **row, **scores, **fields})


def epoch(number: int, val_accuracy: float = 0.5) -> dict[str, float]:
    return {"epoch": number, "val_accuracy": val_accuracy, "train_loss": 1.0, "images_per_second": 120.0}


def test_a_log_names_each_epoch_with_its_speed_and_each_end_with_its_score_or_reason() -> None:
    log = io.StringIO()
    with SweepProgress([trial("a"), trial("b")], [], Console(file=log, width=200)) as progress:
        progress.trial_started("a")
        progress.epoch_ended("a", epoch(1))
        progress.trial_ended(result("a"))
        progress.trial_ended(result("b", status="failed", error="diverged"))
    lines = log.getvalue().splitlines()
    assert lines[0] == "a: epoch 1/4, val accuracy 0.500, 120 images/s"
    assert lines[1].startswith("[1/2] a: completed, test accuracy 0.250")
    assert lines[2] == "[2/2] b: failed: diverged"


def test_a_trial_that_is_stopped_and_scored_later_counts_once() -> None:
    log = io.StringIO()
    with SweepProgress([trial("a"), trial("b")], ["b"], Console(file=log, width=200)) as progress:
        progress.trial_stopped("a")
        progress.trial_ended(result("a", status="stopped"))
    assert [line[:5] for line in log.getvalue().splitlines()] == ["[2/2]", "[2/2]"]


def test_what_waits_for_room_in_the_budget_is_counted_and_takes_no_part_in_the_time_left() -> None:
    def last_line(chosen: list[str] | None) -> str:
        log = io.StringIO()
        with SweepProgress([trial(name) for name in "abcd"], [], Console(file=log, width=200)) as progress:
            if chosen is not None:
                progress.trials_chosen(chosen, num_waiting=4 - len(chosen))
            progress.trial_started("a")
            progress.epoch_ended("a", epoch(1))
            progress.trial_ended(result("a"))
        return log.getvalue()

    assert "wait" not in last_line(None)
    assert "left)" in last_line(None)
    assert last_line(["a"]).startswith("3 trials wait: the budget may have no room for them")
    assert "left)" not in last_line(["a"])
    assert "left)" in last_line(["a", "b"])


def test_a_run_without_a_budget_says_nothing_of_waiting_when_stopped_trials_still_lack_their_score() -> None:
    log = io.StringIO()
    with SweepProgress([trial("a"), trial("stopped")], [], Console(file=log, width=200)) as progress:
        progress.trials_chosen(["a"], num_waiting=0)
    assert log.getvalue() == ""


def test_a_terminal_shows_running_trials_totals_speed_and_the_best_so_far() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=160, force_terminal=True)
    with SweepProgress([trial("a"), trial("b")], [], console) as progress:
        progress.trial_started("a")
        progress.trial_started("b")
        progress.epoch_ended("a", epoch(1, 0.75))
        progress.epoch_ended("b", epoch(2, 0.5))
        console.print(progress.table())
    shown = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).split())
    assert "0 of 2 trials ended, 240 images/s" in shown
    assert "best val accuracy 0.750 (a)" in shown
    assert "1/4" in shown
    assert "2/4" in shown
    assert "left)" in shown
