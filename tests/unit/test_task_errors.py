"""What becomes of an error in another process."""

from typing import Any

import pytest
import ray

from tlray.distributed.cluster import connect
from tlray.distributed.errors import answer, reason_of
from tlray.errors import ClusterError, DataError, TlrayError, TrialError


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


@pytest.mark.parametrize(
    ("address", "kind", "exit_code", "said"),
    [
        ("10.0.0.1:6379", ClusterError, 2, r"^RAY_ADDRESS 10\.0\.0\.1:6379: nobody there; check it"),
        (None, TlrayError, 1, r"^Ray cannot be started on this machine: nobody there; give the same command again"),
    ],
)
def test_a_ray_that_cannot_be_reached_or_started_is_one_clear_error(
    address: str | None, kind: type[TlrayError], exit_code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**settings: Any) -> None:
        raise Exception("nobody there")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(kind, match=said) as caught:
        connect()
    assert caught.value.exit_code == exit_code


def test_a_home_that_cannot_be_written_is_named_when_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**settings: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/nope/.ray")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(TlrayError, match=r"/proc/nope/\.ray: No such file or directory; .* HOME \(/proc/nope\)"):
        connect()
