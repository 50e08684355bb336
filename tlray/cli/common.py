"""What all commands share: the app, their arguments, how results are printed and errors end."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from tlray.errors import NothingToDo, TlrayError

app = typer.Typer(
    help="Find, prove and export the pre-trained backbone that works best on your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(width=None if sys.stdout.isatty() else 120)

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, local or s3://", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides such as training.epochs=5", metavar="KEY=VALUE")]
RunArgument = Annotated[str, typer.Argument(help="run folder, local or s3://", metavar="RUN")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what this would do and what it takes, start nothing")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of a table")]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the app; its exit code is the command's."""
    with exit_on_error():
        app(arguments)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an expected error into one line on stderr and its exit code."""
    try:
        yield
    except NothingToDo as reason:
        print(reason)
        sys.exit(reason.exit_code)
    except TlrayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def load_config(location: str, overrides: list[str] | None = None) -> Any:
    """The configuration at a local path or URI, with overrides; shared with jobs/."""
    from tlray import storage
    from tlray.config.file import parse_config

    return parse_config(storage.read_text(location), overrides or (), source=location)


def print_run(run_uri: str) -> None:
    """The first and the last line of everything that makes a run."""
    print(f"run folder: {run_uri}", flush=True)


def show(content: Any, table: Any, as_json: bool) -> None:
    """Print a table for people or one JSON document for programs."""
    if as_json:
        plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else [vars(item) for item in content]
        print(json.dumps(plain))
    else:
        out.print(table)
