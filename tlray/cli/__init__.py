"""The command line: each command parses, calls one function of the library and prints where the result is.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 nothing to do, 130 interrupted (and resumable).
"""

from tlray.cli import sweeps, models, after, doctor  # isort: skip  # in the order of `tlray --help`
from tlray.cli.common import app, exit_on_error, load_checked, main, print_run
from tlray.cli.job import config_job

__all__ = [
    "after",
    "app",
    "config_job",
    "doctor",
    "exit_on_error",
    "load_checked",
    "main",
    "models",
    "print_run",
    "sweeps",
]
