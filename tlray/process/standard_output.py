"""Standard output that may be closed, full, or read by nobody any more: a command ends then as Unix tools do.

    with standard_output():
        app()               # `tlray models | head` ends with 141 and without a word, `> /dev/full` with 1 and one line

Text that the terminal's encoding lacks, such as names that are not valid UTF-8, is written with backslashes.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tlray.errors import TlrayError

NOBODY_READS = 128 + signal.SIGPIPE  # as a shell tells of a tool that SIGPIPE has ended


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Inside, writing where it cannot be done ends the command: SystemExit where nobody reads, else TlrayError."""
    _open_what_is_closed()
    guarded, before = _Guarded(sys.stdout), sys.stdout
    sys.stdout = guarded
    try:
        yield
        guarded.flush()
        guarded.end()  # what failed in a thread has ended that thread alone
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            guarded.flush()
            guarded.end()
        raise
    finally:
        with contextlib.suppress(SystemExit, TlrayError):
            guarded.flush()
        sys.stdout = before


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


class _Guarded:
    """A stream whose failure to write is an end of the command, once; what is written afterwards goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        return self._guard(lambda: self._stream.write(text))

    def writelines(self, lines: Any) -> Any:
        return self._guard(lambda: self._stream.writelines(lines))

    def flush(self) -> Any:
        return self._guard(self._stream.flush)

    def end(self) -> None:
        """Raises what a failure means, where there was one."""
        if self._failure is None:
            return
        if isinstance(self._failure, BrokenPipeError):
            raise SystemExit(NOBODY_READS)
        raise TlrayError(f"standard output cannot be written: {self._failure.strerror}")

    def _guard(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError as error:
            self._failure = error
            _send_nowhere(self._stream)
            self.end()


def _send_nowhere(stream: Any) -> None:
    """What is still buffered must not fail again at the end of the process."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_what_is_closed() -> None:
    """`tlray ... >&-`: else the next file that is opened would be standard output, and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
