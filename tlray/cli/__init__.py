"""The command line: each command parses, calls one function of the library and prints where the result is.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 nothing to do, 130 interrupted (and resumable).
"""

from tlray.cli import sweeps, models, after, doctor  # isort: skip  # in the order of `tlray --help`
from tlray.cli.common import app, exit_on_error, load_config, print_run

__all__ = ["after", "app", "doctor", "exit_on_error", "load_config", "main", "models", "print_run", "sweeps"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the app; its exit code is the command's."""
    with exit_on_error():
        app(arguments)
