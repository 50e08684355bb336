"""The report of a retraining: whole and balanced as HTML, tables that are tables as Markdown, nothing fetched."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_report import Page
from tlray.config import RetrainConfig
from tlray.runs.champion import Candidate, Champion
from tlray.workflows.retrain.drift import Drift
from tlray.workflows.retrain.images import Growth
from tlray.workflows.retrain.record import Record, load_record, message, save_record
from tlray.workflows.retrain.report import HTML, MARKDOWN, render, summary_line, write_reports
from tlray.workflows.retrain.verdict import judge

ODD = "<b>|&owl"  # a class's name may be anything


def champion() -> Champion:
    return Champion(**candidate().model_dump(), number=4, promoted=0.0, by="hand", reason="good", previous=3)


def candidate() -> Candidate:
    return Candidate(
        export="/runs/birds/1/exports/1-resnet50",
        run="/runs/birds/1",
        trial_id="001",
        backbone="timm/resnet50",
        strategy="partial(2)",
        params={"lr": 0.1},
        classes=(ODD, "wren"),
        metrics={"test_accuracy": 0.912},
        fingerprint="f",
        start=None,
    )


def record(**fields: Any) -> Record:
    truth = [ODD] * 60 + ["wren"] * 60 + ["kite"] * 10
    verdict = judge(
        truth,
        [ODD] * 60 + ["wren"] * 50 + [ODD] * 10 + ["kite"] * 10,
        [ODD] * 40 + ["wren"] * 20 + ["wren"] * 60 + ["wren"] * 10,
        RetrainConfig(),
        known_to_champion=(ODD, "wren"),
    )
    growth = Growth(
        num_images=600,
        num_new=30,
        num_gone=2,
        num_relabelled=1,
        new_by_split={"test": 5, "train": 25},
        new_classes=("kite",),
        gone_classes=("emu",),
        shares={ODD: (200, 10), "wren": (220, 5), "kite": (0, 10)},
    )
    drift = Drift(
        backbone="timm/resnet50",
        num_old=420,
        num_new=25,
        energy=0.31,
        energy_p_value=0.005,
        auc=0.93,
        class_shares=0.4,
        new_disagreement=0.5,
        old_disagreement=0.02,
    )
    plain: dict[str, Any] = {
        "name": "birds",
        "run": "/runs/birds/2",
        "cause": "the images have changed",
        "champion": champion(),
        "challenger": candidate(),
        "outcome": "promoted" if verdict.promote else "refused",
        "verdict": verdict,
        "left_out": 3,
        "num_images": {"train": 420, "val": 60, "test": 130},
        "growth": growth,
        "drift": drift,
        "prefix_images_computed": 30,
        "seconds": 125.0,
        "settings": RetrainConfig(),
        "warm_start": True,
        "time": 0.0,
    }
    return Record(**{**plain, **fields})


FIRST = {"champion": None, "verdict": None, "outcome": "first", "growth": None, "drift": None}
KINDS = {"refused": {}, "first": FIRST, "no drift": {"drift": "3 new images: too few", "growth": None}}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS.keys())
def test_the_html_is_one_balanced_file_that_fetches_nothing(fields: dict[str, Any]) -> None:
    page = Page(render(HTML, record(**fields), 4))
    assert "script" not in page.tags
    assert not page.links
    assert "b" not in page.tags, "a class's name is text"


def test_a_refusal_says_why_with_its_numbers() -> None:
    text = Page(render(HTML, record(), 4)).text
    assert "challenger refused, champion 4 stays" in text
    assert "recall of wren falls from 100.0 to 83.3 %" in text
    assert "+15.4" in text
    assert "McNemar" in text
    assert "3 test images are left out" in text
    assert "new classes: kite; the champion cannot name them" in text
    assert "The new images differ from the old ones clearly. Their labels often disagree" in text


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS.keys())
def test_every_table_of_the_markdown_has_rows_of_one_width(fields: dict[str, Any]) -> None:
    text = render(MARKDOWN, record(**fields), 4)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        rows = [row.replace("\\|", "") for row in table.splitlines()]
        assert len({row.count("|") for row in rows}) == 1, table
        assert re.fullmatch(r"\|(:?-+:?\|)+", rows[1]), table
    assert "\n\n\n" not in text
    assert text.startswith("## birds: ")


def test_the_summary_is_one_line() -> None:
    assert summary_line(record(), 4) == (
        "challenger refused, champion 4 stays: recall of wren falls from 100.0 to 83.3 %, by more than "
        "retrain.max_class_drop 0.05 (60 images); test accuracy 76.9 -> 92.3 % on 130 images"
    )
    assert summary_line(record(**FIRST), 1) == "champion 1 promoted: /runs/birds/1/exports/1-resnet50"


def test_a_record_comes_back_as_saved_and_its_reports_lie_beside_it(tmp_path: Path) -> None:
    assert load_record(str(tmp_path)) is None
    saved = record(run=str(tmp_path))
    save_record(saved)
    assert load_record(str(tmp_path)) == saved
    assert write_reports(saved, 4) == str(tmp_path / "retrain.html")
    assert (tmp_path / "retrain.md").exists()


def test_the_webhook_is_told_what_came_of_it() -> None:
    told = message(record(), 4, "/report")
    assert (told["event"], told["champion"], told["report"]) == ("refused", 4, "/report")
    assert told["challenger_accuracy"] == pytest.approx(120 / 130)
    assert message(record(**FIRST), 1, "/report")["p_value"] is None
