"""The command line: each command parses, calls one function of the library and prints where the result is.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 nothing to do, or another process is at work on it,
130 interrupted (and resumable).

Importing this imports next to nothing: a signal is answered from the first moment on.
"""

import sys

from tlray.process.ending import own_process


def main(arguments: list[str] | None = None) -> None:
    """Entry point: its exit code is the command's. Without `arguments` they are the process's, which ends with it."""
    if arguments is None:
        own_process(lambda: main(sys.argv[1:]))
    from tlray.cli.commands import run

    run(arguments)
