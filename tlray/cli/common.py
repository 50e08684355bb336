"""What all commands share: the app, their arguments, how results are printed and errors end."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from tlray.errors import ConfigError, HeldElsewhere, InputError, NothingToDo, TlrayError
from tlray.process import ending
from tlray.process.console import PlainConsole, say
from tlray.process.standard_output import is_terminal


class _Group(TyperGroup):
    """A mistake in the command line itself is one line too, as every other."""

    def main(  # as typer has it
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's own have it, whichever click they come from
                raise
            message = error.format_message()
            if "\n" in message:  # `tlray` alone: the help
                print(message)
                sys.exit(2)
            context = getattr(error, "ctx", None)
            help_of = context.command_path if context is not None else "tlray"
            given = _given(getattr(error, "param", None), args if args is not None else sys.argv[1:])
            raise InputError(f"{message.rstrip('.')}{given}; see `{help_of} --help`") from None
        if standalone_mode:
            sys.exit(code or 0)
        return code


def _given(parameter: Any, arguments: Sequence[str]) -> str:
    """The value of an option, for a message that leaves it out; nothing for arguments and `--option=value`."""
    options = set(getattr(parameter, "opts", ()))
    values = [value for option, value in itertools.pairwise(arguments) if option in options]
    return f", not {values[-1]!r}" if values else ""


app = typer.Typer(
    cls=_Group,
    help="Find, prove and export the pre-trained backbone that works best on your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = PlainConsole(width=None if is_terminal() else 120)

MOST_COUNT = 100_000

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, local or s3://", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides such as training.epochs=5", metavar="KEY=VALUE")]
RunArgument = Annotated[str, typer.Argument(help="run folder, local or s3://", metavar="RUN")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what this would do and what it takes, start nothing")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of a table")]


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an expected error into one line on stderr and its exit code."""
    try:
        yield
    except HeldElsewhere as error:
        ending.say(f"error: {error}")
        sys.exit(error.exit_code)
    except NothingToDo as reason:
        say(str(reason))
        sys.exit(reason.exit_code)
    except TlrayError as error:
        ending.say(f"error: {error}")
        sys.exit(error.exit_code)


def load_config(location: str, overrides: list[str] | None = None) -> Any:
    """The configuration at a local path or URI, with overrides; shared with jobs/."""
    from tlray import storage
    from tlray.config.file import parse_config
    from tlray.config.text import MAX_CHARACTERS

    with storage.open_file(location) as file:  # no more of it than a configuration can be: it may be anything
        data = file.read(4 * MAX_CHARACTERS + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{location} is not a text file in UTF-8: give a configuration in YAML") from None
    return parse_config(text, overrides or (), source=location)


def load_located(location: str, overrides: list[str] | None = None) -> Any:
    """The same, with all checked that can be without Ray and torch."""
    config = load_config(location, overrides)
    from tlray.planning.first_look import look_at_config

    look_at_config(config)
    return config


def load_checked(location: str, overrides: list[str] | None = None) -> Any:
    """The same, with the ids of backbones, which some libraries import torch for."""
    config = load_located(location, overrides)
    from tlray.planning.first_look import look_at_backbones

    look_at_backbones(config)
    return config


def check_count(option: str, value: int | None) -> None:
    """InputError for a number of things that nothing has."""
    if value is not None and not 1 <= value <= MOST_COUNT:
        raise InputError(f"{option} {value}: give a number from 1 to {MOST_COUNT}")


def print_run(run_uri: str) -> None:
    """The first and the last line of everything that makes a run."""
    say(f"run folder: {run_uri}")


def show(content: Any, table: Any, as_json: bool) -> None:
    """Print a table for people or one JSON document for programs."""
    if as_json:
        plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else [vars(item) for item in content]
        print(json.dumps(plain))
    else:
        out.print(table)
