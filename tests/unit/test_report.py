"""report/: the leaderboard for terminals and report.html, of finished, unfinished and failed runs.

Run: python -m pytest tests/unit/test_report.py
"""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_run import make_run
from rich.console import Console
from rich.table import Table

from tlray.catalogue import ModelFacts
from tlray.errors import StorageError
from tlray.report import leaderboard_table, models_table, write_report
from tlray.report.words import count, duration, interval, percent, points, shared_params, varying_params
from tlray.runs.board import make_leaderboard, write_leaderboard
from tlray.runs.trials import load_results
from tlray.storage.sealed import write_document

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(run: Path) -> tuple[str, Page]:
    uri = write_report(str(run))
    assert uri == str(run / "report.html")
    html = (run / "report.html").read_text()
    return html, Page(html)


def printed(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
        return console.export_text()


def test_the_report_shows_every_trial_with_its_gain_and_interval(tmp_path):
    trials = make_run(str(tmp_path), failed=[3], stopped=[4], bad=[("s3://bucket/x.jpg", "truncated")])
    _, page = report(tmp_path)
    board = make_leaderboard(str(tmp_path))
    for trial in trials:
        assert trial.trial_id in page.text
    for row in board.rows:
        if row.gain is not None:
            assert f"{points(row.gain)} {interval(row.gain_low, row.gain_high)}" in page.text
    for statement in (
        "out of GPU memory: lower batch_size",
        "stopped",
        "s3://bucket/x.jpg",
        "truncated",
        "lr",
        "Learning curves",
        "What accuracy costs",
        "120 training, 60 validation and 60 test images of 3 classes",
        "search_space",
    ):
        assert statement in page.text
    assert "This run is unfinished" not in page.text


def test_the_report_is_one_file_that_fetches_nothing_and_runs_nothing(tmp_path):
    make_run(str(tmp_path))
    html, page = report(tmp_path)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert [path.name for path in tmp_path.glob("*.html")] == ["report.html"]


def test_the_figures_are_well_formed_and_drawn_in_the_pages_ink(tmp_path):
    make_run(str(tmp_path))
    html, _ = report(tmp_path)
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 3
    for svg in figures:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "mathdefault" not in svg


def test_names_are_shown_as_they_are_and_never_as_markup(tmp_path):
    make_run(str(tmp_path), classes=["<b>bold</b>", "$x$ & y", "[red]"], bad=[("<script>x</script>.jpg", "a & b")])
    html, page = report(tmp_path)
    assert "<b>bold" not in html
    assert "<script>" not in html
    for name in ("<b>bold</b>", "$x$ & y", "[red]", "<script>x</script>.jpg", "a & b"):
        assert name in page.text


def test_the_confusion_matrix_is_the_champions_on_the_test_split(tmp_path):
    make_run(str(tmp_path), classes=["cat", "dog"], num_test=50)
    html, page = report(tmp_path)
    matrix = re.findall(r"<td[^>]*rgba[^>]*>(\d*)</td>", html)
    right = int(matrix[0] or 0) + int(matrix[3] or 0)
    champion = make_leaderboard(str(tmp_path)).champion
    assert champion is not None
    assert champion.test_accuracy == pytest.approx(right / 50)
    assert "recall %" in page.text


def test_with_many_classes_the_largest_confusions_stand_for_the_matrix(tmp_path):
    make_run(str(tmp_path), classes=[f"class {i}" for i in range(40)], num_test=80)
    html, page = report(tmp_path)
    assert 'class="matrix' not in html
    assert "% of class" in page.text


def test_an_unfinished_run_says_what_is_missing_and_how_to_go_on(tmp_path):
    trials = make_run(str(tmp_path), num_ended=10)
    _, page = report(tmp_path)
    assert "This run is unfinished." in page.text
    assert f"10 of {len(trials)} trials have ended" in page.text
    assert trials[10].trial_id in page.text
    assert f"tlray resume {tmp_path}" in page.text


def test_a_run_that_a_budget_ended_is_finished_and_names_what_was_left_out(tmp_path):
    trials = make_run(str(tmp_path), num_ended=10)
    dropped = [trial.trial_id for trial in trials[10:]]
    spent = {"limit_seconds": 100.0, "spent_seconds": 61.0, "dropped": dropped}
    write_document(str(tmp_path / "budget.json"), spent)
    _, page = report(tmp_path)
    assert "unfinished" not in page.text
    assert "tlray resume" not in page.text
    assert f"The budget had no room for {len(dropped)} of {len(trials)} trials." in page.text
    assert "1:01 min of 1:40 min were spent" in page.text
    assert f"Left out: {dropped[0]}" in page.text
    (tmp_path / "budget.json").write_text('{"limit_seconds": 1}')
    with pytest.raises(StorageError, match=r"budget\.json is damaged"):
        report(tmp_path)


def test_a_run_of_which_no_trial_has_ended_has_a_report(tmp_path):
    make_run(str(tmp_path), num_ended=0)
    _, page = report(tmp_path)
    assert "No trial has a score yet." in page.text
    assert "No trial has ended yet." in page.text


def test_a_run_that_failed_altogether_has_a_report_with_the_reasons(tmp_path):
    trials = make_run(str(tmp_path), failed=range(20))
    _, page = report(tmp_path)
    assert f"No trial has a score yet; {len(trials)} failed, see below." in page.text
    assert "out of GPU memory" in page.text


def test_without_the_baseline_the_report_says_why_there_is_no_gain(tmp_path):
    make_run(str(tmp_path), failed=[0])
    _, page = report(tmp_path)
    assert "missing because the baseline failed: out of GPU memory" in page.text
    assert "Gain over the baseline" not in page.text


def test_two_reports_of_the_same_run_are_equal(tmp_path):
    make_run(str(tmp_path))
    assert report(tmp_path)[0] == report(tmp_path)[0]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"config\.yaml"):
        write_report(str(tmp_path))


def test_the_leaderboard_fits_100_columns_and_hides_nothing(tmp_path):
    backbones = ["timm/vit_small_patch16_224.augreg_in21k_ft_in1k", "timm/test_resnet"]
    make_run(str(tmp_path), backbones=backbones, failed=[2], stopped=[3])
    board = write_leaderboard(str(tmp_path))
    text = printed(leaderboard_table(board))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    letters = re.sub(r"\s", "", text)
    for row in board.rows:
        if row.gain is not None:
            assert f"{points(row.gain)} {interval(row.gain_low, row.gain_high)}" in text
            assert percent(row.test_accuracy) in text
    assert "baseline" in text
    assert "4*" in text
    assert "* stopped early by the scheduler" in text
    assert "failed:outofGPUmemory" in letters
    assert "lr=0.001" in text


def test_the_leaderboard_without_a_baseline_says_why(tmp_path):
    make_run(str(tmp_path), failed=[0])
    assert "no gains: the baseline failed" in printed(leaderboard_table(write_leaderboard(str(tmp_path))))


def test_square_brackets_in_a_reason_are_text_not_style(tmp_path):
    make_run(str(tmp_path), num_ended=2, failed=[1])
    rows = write_leaderboard(str(tmp_path)).model_dump()
    rows["rows"][-1]["error"] = "bad [bold]shape[/bold]"
    board = type(write_leaderboard(str(tmp_path))).model_validate(rows)
    assert "bad [bold]shape[/bold]" in printed(leaderboard_table(board))


def test_only_hyper_parameters_that_differ_are_shown_per_trial(tmp_path):
    make_run(str(tmp_path))
    results = load_results(str(tmp_path))
    assert varying_params(results) == ["lr"]
    assert shared_params(results)["epochs"] == 4
    assert "lr" not in shared_params(results)


def test_a_solved_probe_shows_how_it_was_found_and_leaves_the_others_rates_alone(tmp_path):
    make_run(str(tmp_path))
    results = load_results(str(tmp_path))
    solved = results[1].model_copy(update={"params": {"solver": "lbfgs", "augmentation": "none", "C": 0.046}})
    assert varying_params([solved, *results]) == ["solver", "augmentation", "C", "lr"]
    assert shared_params([solved, *results])["epochs"] == 4
    assert varying_params([*results, solved])[-2:] == ["solver", "C"]


def test_models_are_listed_with_the_figures_that_are_published():
    facts = ModelFacts(id="timm/some_model.a1_in1k", weights=("a1_in1k",), input_size=224, top1=80.5)
    text = printed(models_table([facts]))
    assert "80.50" in text
    assert "a1_in1k" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(0.36), "0.4 s"),
        (duration(9.96), "10 s"),
        (duration(42.4), "42 s"),
        (duration(59.9), "1:00 min"),
        (duration(185), "3:05 min"),
        (duration(7620), "2:07 h"),
        (count(1_234_567), "1.23 M"),
        (count(999), "999"),
        (count(None), "-"),
        (percent(None), "-"),
        (points(-0.0123), "-1.2"),
    ],
)
def test_figures_are_written_as_people_read_them(shown, expected):
    assert shown == expected
