"""All commands, as one app."""

from tlray.cli import sweeps, models, after, doctor  # isort: skip  # in the order of `tlray --help`
from tlray.cli.common import app, exit_on_error
from tlray.process.scratch import sweep
from tlray.process.standard_output import standard_output

__all__ = ["after", "app", "doctor", "models", "run", "sweeps"]


def run(arguments: list[str]) -> None:
    """One command; an error that was expected is one line, and SystemExit its exit code."""
    with exit_on_error(), standard_output():
        sweep()
        app(arguments)
