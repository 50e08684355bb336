"""Draws the rooms of tlray in docs/architecture.md, from the imports in the code.

    python scripts/architecture_drawing.py            # writes the drawing between its two markers
    python scripts/architecture_drawing.py --check    # exit code 1 when the page shows another one

A room stands one line below the last room that it imports. `cli` may import every room and is left out of the arrows.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawing: scripts/architecture_drawing.py -->", "<!-- end of drawing -->"
FOR_EVERYBODY = "errors"


def room_imports(package: Path) -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    imports: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for room in rooms:
        for path in (package / room).rglob("*.py"):
            imports[room] |= (_imported_rooms(path) & rooms) - {room}
    return imports


def layers(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The rooms, each below all those that it imports. ValueError when two rooms import each other."""
    placed: list[list[str]] = []
    waiting = dict(imports)
    while waiting:
        above = {room for layer in placed for room in layer}
        ready = sorted(room for room, needed in waiting.items() if needed <= above)
        if not ready:
            raise ValueError(f"these rooms import each other: {', '.join(sorted(waiting))}")
        placed.append(ready)
        for room in ready:
            del waiting[room]
    return placed


def draw(imports: Mapping[str, set[str]]) -> str:
    """The layers as text: each room with the rooms that it imports and that no other import of it brings along."""
    lines = [f"{FOR_EVERYBODY:<12} is imported everywhere", ""]
    for number, layer in enumerate(layers(imports), start=1):
        for position, room in enumerate(layer):
            direct = sorted(imports[room] - _indirect(room, imports))
            arrow = f" <- {', '.join(direct)}" if direct else ""
            lines.append(f"{number if position == 0 else '':>2}  {room:<12}{arrow}".rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()


def page_with(drawing: str, page: str) -> str:
    """The page with the drawing between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n```\n{drawing}\n```\n\n{END}{after}"


def _imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tlray.")}


def _indirect(room: str, imports: Mapping[str, set[str]]) -> set[str]:
    """The rooms that some import of `room` imports, directly or not."""
    found: set[str] = set()
    waiting = [deeper for needed in imports[room] for deeper in imports[needed]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports[name]
    return found


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    drawn = page_with(draw(room_imports(ROOT / "tlray")), page)
    if "--check" in sys.argv[1:]:
        return int(drawn != page)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
