"""How a command's process ends before its work is done: by a signal, or because what it runs on has died.

    own_process(work)                                    # the whole of a command; never returns
    with interruptible("`tlray resume RUN` goes on"):    # as the line says then
        at_hard_end(kill_processes)                      # what must not stay behind; atexit where there is time
    stop(1, "Ray's raylet on this machine has died")     # from any thread

A stop raises Stopped in the main thread, so that leases and folders are given back on the way out. Whoever asks twice,
or whose way out takes longer than GRACE, gets the hard end: `at_hard_end`, the line and the exit code, nothing unwound.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, TextIO

from tlray.errors import Interrupted, TlrayError, TrialError
from tlray.process.printable import in_one_line

GRACE = 15.0  # seconds for the way out
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """No Exception: libraries that are just being imported swallow those."""


@dataclass(frozen=True)
class _Stop:
    exit_code: int
    reason: str

    def error(self, remedy: str) -> TlrayError:
        kind = Interrupted if self.exit_code == Interrupted.exit_code else TrialError
        return kind(f"{self.reason}; {remedy}" if remedy else self.reason)


@dataclass
class _Ending:
    """Of this process. Changed by the main thread, the signal handler and watching threads."""

    owned: bool = False  # the process is a command's own: nobody else's work is in it
    stop: _Stop | None = None
    raised: bool = False
    finishing: bool = False  # the work is over, done or not: nothing is raised any more
    remedies: list[str] = field(default_factory=list)
    remedy: str = ""  # of the place where the stop was raised
    at_once: list[Callable[[], None]] = field(default_factory=list)
    said: bool = False
    code: int = 1  # without a stop


_ending = _Ending()


def own_process(work: Callable[[], None]) -> NoReturn:
    """Do `work` as the only thing that this process does, and end it with the exit code that is right."""
    _ending.owned = True
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _on_signal)
    code = 1
    try:
        work()
        _ending.remedies.append("its work was done")
        code = 0
    except SystemExit as end:
        code = _code_of(end)
    except BaseException:
        if _ending.stop is None:
            traceback.print_exc()
    _finish(code)


def owns_process() -> bool:
    """Whether this process is a command's own."""
    return _ending.owned


@contextlib.contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """A stop inside is the one error that says what has happened and how to go on, whatever it was turned into.

    Ray's compiled code turns it into a SystemError. In a thread other than the main one nothing can be stopped. In a
    process that is no command's own the handlers are put back, and there is no hard end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {} if _ending.owned else {number: signal.signal(number, _on_signal) for number in SIGNALS}
    _ending.remedies.append(remedy)
    try:
        yield
    except BaseException:
        if _ending.stop is None:
            raise
        raise _ending.stop.error(_ending.remedy) from None
    finally:
        _ending.remedies.pop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if not _ending.owned and not _ending.remedies:
            _ending.stop, _ending.raised = None, False


def stop(exit_code: int, reason: str) -> bool:
    """End what this process does, from any thread; False where it does nothing that can be stopped."""
    if _ending.stop is None and not _ending.finishing and (_ending.owned or _ending.remedies):
        _begin(_Stop(exit_code, reason))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    return _ending.stop is not None


def renew_handlers() -> None:
    """After a library may have replaced them in its compiled code, where Python does not notice."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))


def at_hard_end(release: Callable[[], None]) -> None:
    """What must happen where nothing else can: for processes and folders. The ordinary way out is atexit's."""
    _ending.at_once.append(release)


def say(line: str) -> None:
    """The one line of an end that came early, on stderr; in a command's own process a second one is not printed."""
    line = in_one_line(line)
    if not _ending.owned:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        return
    if not _ending.said:
        _ending.said = True
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a live table hides
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}{line}\n".encode(errors="replace"))  # a handler may not use a buffered stream


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _ending.stop is None:
        _begin(_Stop(Interrupted.exit_code, f"interrupted by {signal.Signals(number).name}"))
    elif _ending.raised:
        if _ending.owned:
            _end_at_once()
        return
    _ending.raised = True
    if not _ending.finishing:
        raise Stopped


def _begin(stop: _Stop) -> None:
    _ending.stop = stop
    _ending.remedy = _ending.remedies[-1] if _ending.remedies else ""
    if _ending.owned:
        sys.unraisablehook = lambda unraisable: None  # raised inside a destructor it would be a traceback
        _arm()


def _arm() -> None:
    timer = threading.Timer(GRACE, _end_at_once)
    timer.daemon = True
    timer.start()


def _finish(code: int) -> NoReturn:
    """Leave in order, which may take as long as the way out of a stop."""
    _ending.finishing = True
    _ending.code = code
    _arm()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    _leave()


def _end_at_once() -> NoReturn:
    """From the signal handler or the timer's thread: the main thread may be anywhere, also in a call that hangs."""
    for at_once in reversed(_ending.at_once):
        with contextlib.suppress(Exception):
            at_once()
    _leave()


def _leave() -> NoReturn:
    """Nothing of Python or C++ is taken apart: libraries abort there when a thread of theirs is still at work."""
    if _ending.stop is not None:
        say(f"error: {_ending.stop.error(_ending.remedy)}")
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os._exit(_ending.code if _ending.stop is None else _ending.stop.exit_code)


def _flush(stream: TextIO) -> None:
    """A stream may be closed, or nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        stream.flush()


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
