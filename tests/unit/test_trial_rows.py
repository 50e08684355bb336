"""What becomes of a trial that Ray Tune gives up: a row, or another turn."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_run import make_run

ray = pytest.importorskip("ray")

from tlray.distributed.tune_trials import NOT_REUSED, _can_conclude, _Rows  # noqa: E402
from tlray.distributed.watchdog import Loop  # noqa: E402
from tlray.runs.trials import read_trial_result  # noqa: E402


def given_up(tmp_path: Path, words: str, error: BaseException | None) -> Any:
    """The row of a trial that has ended for Tune with `words` in its error file."""
    run_uri = str(tmp_path / "run")
    trial = make_run(run_uri, num_ended=0)[0]
    (tmp_path / "error.txt").write_text(f"Failure # 1\n{words}\n")
    ended: list[Any] = []
    watch: Any = SimpleNamespace(trial_ended=ended.append)
    of_tune: Any = SimpleNamespace(
        config={"trial": {"trial_id": trial.trial_id}},
        error_file=str(tmp_path / "error.txt"),
        get_pickled_error=lambda: error,
    )
    accounts: Any = SimpleNamespace()  # told nothing of a trial that has failed
    _Rows({trial.trial_id: trial}, run_uri, accounts, watch, Loop("Ray Tune")).on_trial_error(0, [of_tune], of_tune)
    row = read_trial_result(run_uri, trial.trial_id)
    assert ended == ([] if row is None else [row])
    return row


def test_a_trial_that_got_the_actor_of_one_that_stops_slowly_has_no_row_and_so_another_turn(tmp_path: Path) -> None:
    assert given_up(tmp_path, f"Trainable runner {NOT_REUSED} to be implemented and return True.", None) is None


def test_the_words_by_which_that_is_known_are_those_of_ray() -> None:
    from ray.tune.execution import tune_controller

    assert NOT_REUSED in Path(tune_controller.__file__).read_text()


def test_a_trial_that_has_lost_its_process_too_often_may_be_tried_again(tmp_path: Path) -> None:
    row = given_up(tmp_path, "The actor died unexpectedly.", ray.exceptions.ActorDiedError())
    assert (row.status, row.may_pass, row.error) == ("failed", True, "The actor died unexpectedly.")


def test_a_trial_that_raised_is_its_own_fault(tmp_path: Path) -> None:
    row = given_up(tmp_path, "ValueError: bad shape", ray.exceptions.RayTaskError("train", "", ValueError("bad shape")))
    assert (row.status, row.may_pass) == ("failed", False)


def test_a_run_can_be_concluded_when_the_baseline_and_another_trial_have_come_to_something(tmp_path: Path) -> None:
    def can_conclude(num_ended: int) -> bool:
        run_uri = str(tmp_path / str(num_ended))
        run: Any = SimpleNamespace(uri=run_uri, trials=make_run(run_uri, num_ended=num_ended))
        return _can_conclude(run)

    assert [can_conclude(number) for number in (0, 1, 2)] == [False, False, True]
