"""Stopping a run from outside: SIGINT and SIGTERM end it with a line that says how to go on."""

import contextlib
import os
import signal
import threading
import time

import pytest

from tlray.errors import Interrupted, TrialError
from tlray.process.ending import Stopped, interruptible, stop
from tlray.workflows.run import goes_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_names_itself_and_the_command_that_goes_on(number: signal.Signals) -> None:
    with (
        pytest.raises(Interrupted, match=rf"{number.name}; `tlray resume s3://runs/a`"),
        interruptible(goes_on("s3://runs/a")),
    ):
        os.kill(os.getpid(), number)


def test_before_there_is_a_run_the_signal_names_another_remedy() -> None:
    with pytest.raises(Interrupted, match=r"SIGTERM; start it again"), interruptible("start it again"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_library_that_catches_every_exception_does_not_swallow_the_signal() -> None:
    with pytest.raises(Interrupted), interruptible("run"), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_compiled_code_turns_into_another_error_is_still_an_interrupt() -> None:
    def compiled_code() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise SystemError("an error was set while a function returned a result") from None

    with pytest.raises(Interrupted), interruptible("run"):
        compiled_code()


def test_handlers_are_put_back_and_other_errors_pass_through() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="unrelated"), interruptible("run"):
        raise ValueError("unrelated")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_watching_thread_ends_the_work_with_its_own_reason_and_exit_code_1() -> None:
    def watch() -> None:
        stop(1, "Ray's raylet on this machine has died")

    def work() -> None:
        with interruptible("start it again"):
            threading.Thread(target=watch).start()
            time.sleep(30)

    with pytest.raises(TrialError, match="raylet on this machine has died; start it again"):
        work()


def test_a_watching_thread_ends_nothing_where_nothing_is_under_way() -> None:
    stop(1, "Ray's raylet on this machine has died")
    with interruptible("start it again"):
        pass


def test_a_second_signal_on_the_way_out_does_not_break_it_off_in_a_process_of_others() -> None:
    left = []

    def work() -> None:
        with interruptible("start it again"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Stopped:
                os.kill(os.getpid(), signal.SIGTERM)
                left.append("in order")
                raise

    with pytest.raises(Interrupted):
        work()
    assert left == ["in order"]
