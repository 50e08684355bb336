"""The console that all commands print to: text is text, whatever a name in it looks like.

out = PlainConsole()
out.print(table)
say(f"report: {uri}")                 # a line that is never wrapped, as locations are copied from it
"""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tlray.process.printable import printable


class PlainConsole(Console):
    """Rich's console, which gives no terminal what a name tells it, and takes brackets for brackets."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """As Rich's, without markup unless it is asked for."""
        super().print(*objects, **{"markup": False, **settings})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Cells of tables too, and before they are filled up to their width."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def say(*lines: str, file: IO[str] | None = None) -> None:
    """Print lines as they are, but for what a terminal would obey."""
    for line in lines:
        print(printable(line), file=file, flush=True)
