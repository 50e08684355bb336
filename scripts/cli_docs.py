"""docs/cli.md from the commands' own help.

python scripts/cli_docs.py            writes it
python scripts/cli_docs.py --check    exits with 1 where the file is not what would be written
"""

import sys
from pathlib import Path

import typer
from typer.core import TyperGroup

from tlray.cli.commands import app

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100


def render() -> str:
    """The page: the program's help, then one section for each command."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    context = root.make_context("tlray", ["doctor"], terminal_width=WIDTH, max_content_width=WIDTH)
    sections = [
        "# The command line",
        "Written by `make docs` from the commands' own help; a test keeps it current.",
        "Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 nothing to do, or another process is at work "
        "on it, 130 interrupted (resumable).",
        _block(root.get_help(context)),
    ]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        with command.make_context(name, [], parent=context, resilient_parsing=True) as sub_context:
            sections += [f"## tlray {name}", _block(command.get_help(sub_context))]
    return "\n\n".join(sections) + "\n"


def _block(text: str) -> str:
    lines = (line.rstrip() for line in text.strip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```"


def main(arguments: list[str]) -> int:
    page = render()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text() == page:
            return 0
        print(f"{TARGET.name} is not what the commands say of themselves: run `make docs`", file=sys.stderr)
        return 1
    TARGET.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
