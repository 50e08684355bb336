"""What becomes of an error in another process."""

from typing import Any

import pytest
import ray

from tlray.distributed.errors import answer, reason_of
from tlray.errors import DataError, TrialError


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(task: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)


def of_a_task(cause: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("task", "a traceback\nits last line", cause)


def test_our_own_error_arrives_as_it_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(of_a_task(DataError("a.jpg: is gone")), monkeypatch)
    with pytest.raises(DataError, match=r"^a\.jpg: is gone$"):
        answer(None, "the pass", "start it again")


def test_any_other_end_says_what_broke_down_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(of_a_task(ValueError("first\nthe reason")), monkeypatch)
    with pytest.raises(TrialError, match=r"^the pass broke down: the reason; start it again$"):
        answer(None, "the pass", "start it again")


@pytest.mark.parametrize("error", [AssertionError(), KeyboardInterrupt()])
def test_an_error_without_words_is_named(error: BaseException) -> None:
    assert reason_of(error) == type(error).__name__
