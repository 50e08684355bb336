"""docs/architecture.md: its drawing is that of the code, and every room has its paragraph."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
drawing = runpy.run_path(str(ROOT / "scripts" / "architecture_drawing.py"))


def test_the_drawing_on_the_page_is_that_of_the_code() -> None:
    drawn = drawing["page_with"](drawing["draw"](drawing["room_imports"](ROOT / "tlray")), PAGE)
    assert drawn == PAGE, "run python scripts/architecture_drawing.py"


def test_every_room_has_one_paragraph() -> None:
    rooms = sorted(path.parent.name for path in (ROOT / "tlray").glob("*/__init__.py"))
    assert sorted(re.findall(r"^- \*\*(\w+)\*\*:", PAGE, flags=re.MULTILINE)) == rooms


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`(\w+/[\w/]+\.py)`", PAGE)
    assert named
    for name in named:
        assert (ROOT / "tlray" / name).exists() or (ROOT / name).exists(), name


def test_at_most_twenty_entries_stand_in_the_package() -> None:
    entries = [path for path in (ROOT / "tlray").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20


def test_a_room_stands_below_all_that_it_imports() -> None:
    imports = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a"}}
    assert drawing["layers"](imports) == [["a"], ["b", "d"], ["c"]]
    assert "c            <- b" in drawing["draw"](imports)


def test_rooms_that_import_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="a, b"):
        drawing["layers"]({"a": {"b"}, "b": {"a"}, "c": set()})
