"""Names of the user's are text wherever they are shown: on consoles, in Markdown, in HTML. JSON holds them exactly.

Run: python -m pytest tests/unit/test_printable.py
"""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_run import make_run
from markdown_it import MarkdownIt
from rich.table import Table
from small_bundle import METRICS, SmallBundle, small_bundle

from tlray.cli import main
from tlray.cli.common import exit_on_error
from tlray.errors import DataError
from tlray.export.card import write_card
from tlray.export.files import read_bundle_config
from tlray.export.formats import Agreement
from tlray.process.console import PlainConsole
from tlray.process.printable import code, in_one_line, markdown, printable
from tlray.report import leaderboard_table, write_report
from tlray.runs.board import make_leaderboard
from tlray.runs.bundle_sums import read_checksums

EVIL = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "bell\x07 back\x08space",
    "return\rover",
    "c1 \x9b31m",
    "right\u202eto left\u2066",
    "half \udcff",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[link](javascript:alert(1))",
    "![image](http://host/x.png)",
    "`code` and ``more``",
    "**bold** _italic_ ~~gone~~ $x$",
    "&lt;b&gt; &amp;",
    "[red]brackets[/red] [/]",
    "back\\slash\\|",
    "http://host/auto <http://host/link>",
    "new\nline\n# heading",
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)


class Cells(HTMLParser):
    """The tags of a page, and the text of its table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self._open = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


def rendered(text: str) -> Cells:
    """Markdown as a page, with raw HTML let through, tables, strikethrough and links."""
    return Cells(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@given(TEXT)
def test_printable_text_has_nothing_that_a_terminal_obeys_and_plain_text_is_left_alone(text: str) -> None:
    assert not OBEYED.search(printable(text))
    printable(text).encode()
    assert printable("naïve 名前\tx\n") == "naïve 名前\tx\n"


@pytest.mark.parametrize("name", EVIL)
def test_a_name_in_a_markdown_table_is_its_own_text_in_its_own_cell(name: str) -> None:
    page = rendered(f"| class | train |\n| --- | --- |\n| {markdown(name)} | 8 |\n")
    assert page.tags == {"table", "thead", "tr", "th", "tbody", "td"}
    assert page.cells == [in_one_line(name), "8"]


@given(TEXT.filter(str.split))
def test_any_name_in_a_markdown_table_is_its_own_text(name: str) -> None:
    page = rendered(f"| class | train |\n| --- | --- |\n| {markdown(name)} | 8 |\n")
    assert page.tags == {"table", "thead", "tr", "th", "tbody", "td"}
    assert [" ".join(cell.split()) for cell in page.cells] == [in_one_line(name), "8"]


@given(TEXT.filter(str.split))
def test_any_name_in_a_code_span_stays_in_it(name: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).render(f"of {code(name)}, 8")
    inside = re.fullmatch(r"<p>of <code>(.*)</code>, 8</p>\n", page)
    assert inside is not None, page


@pytest.fixture(scope="module")
def bundle(image_folder: Path) -> SmallBundle:
    return small_bundle(image_folder)


def test_a_model_card_of_evil_classes_has_no_html_and_every_name(bundle: SmallBundle, tmp_path: Path) -> None:
    config = read_bundle_config(str(bundle.folder), read_checksums(str(bundle.folder)))
    evil = config.model_copy(
        update={"classes": EVIL, "initial_weights": EVIL[7], "strategy": EVIL[8], "params": {"<b>": EVIL[9]}}
    )
    counts = {split: {name: 10 + 90 * (name == EVIL[7]) for name in EVIL} for split in ("train", "val", "test")}
    agreement = Agreement(num_images=1, largest_logit=1.0, allowed_difference=1.0, max_abs_difference={"model.pt2": 0})
    write_card(tmp_path, evil, METRICS, counts, agreement)
    text = (tmp_path / "MODEL_CARD.md").read_text()
    page = rendered(text)
    assert not page.tags & {"script", "img", "a", "b", "em", "del"}
    assert not OBEYED.search(text)
    for name in EVIL:
        assert in_one_line(name) in page.cells


def test_a_report_of_evil_classes_has_no_markup_and_no_controls(tmp_path: Path) -> None:
    names = [name for name in EVIL if "\udcff" not in name]
    make_run(str(tmp_path), classes=names, bad=[("s3://x/\x1b[31m<script>.jpg", "\x1b]0;x\x07")])
    page = Path(write_report(str(tmp_path))).read_text()
    assert not OBEYED.search(page)
    assert not {"script", "img"} & Cells(page).tags


@pytest.mark.parametrize("name", EVIL)
def test_no_console_passes_on_what_a_name_tells_a_terminal(name: str) -> None:
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    table = Table("class")
    table.add_row(name.replace("[", "\\["))
    console.print(f"note: {name}", highlight=False)
    console.print(f"warning: {name}", style="yellow", highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    ours = re.compile("\x1b\\[[0-9;]*m")
    written = console.file.getvalue()
    assert not OBEYED.search(ours.sub("", written))
    shown = re.sub("[\x07\x08\r\n]", "", name)  # rich drops some by itself
    assert printable(shown) in ours.sub("", written).replace("\n", "")
    assert set(ours.findall(written)) <= {"\x1b[0m", "\x1b[1m", "\x1b[33m"}, "styles are the program's alone"


def test_a_leaderboard_with_an_evil_reason_prints(tmp_path: Path) -> None:
    make_run(str(tmp_path), failed=[2])
    board = make_leaderboard(str(tmp_path))
    row = board.rows[-1].model_copy(update={"error": "".join(EVIL)})
    console = PlainConsole(file=io.StringIO(), width=100)
    console.print(leaderboard_table(board.model_copy(update={"rows": (*board.rows[:-1], row)})))
    assert isinstance(console.file, io.StringIO)
    assert not OBEYED.search(console.file.getvalue())


@pytest.mark.parametrize("name", EVIL)
def test_an_error_is_one_line_whatever_it_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_error():
        raise DataError(f"{name} is no class")
    error = capsys.readouterr().err
    assert error == f"error: {in_one_line(name)} is no class\n"
    assert not OBEYED.search(error)


def test_predictions_are_text_for_people_and_exact_for_programs(
    bundle: SmallBundle, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    shutil.copy(image_folder / "red" / "00.jpg", images / "\x1b[31m\tevil\n.jpg")
    command = ["predict", str(bundle.folder), str(images)]
    with pytest.raises(SystemExit):
        main(command)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("\t") == 2
    assert not OBEYED.search(line)
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["uri"] == f"{images}/\x1b[31m\tevil\n.jpg"
