"""What benchmarks/quality.py draws, keeps and compares; no model is trained."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_parts.cells import Cell, Cells, Key, macro_f1
from benchmarks.quality_parts.compare import cost_over_dearest, paired_gain, summary
from benchmarks.quality_parts.sets import SETS, draw
from benchmarks.quality_parts.sweep import champion_cell, ensemble_cell
from benchmarks.quality_parts.table import END, START, replace_table, table
from tests.made_up_run import make_run
from tlray.runs.board import write_leaderboard


def make_cell(rival: str, right: list[bool], *, name: str = "dogcat", seed: int = 0, cpu: float = 1.0) -> Cell:
    """A cell that is right for the test images where `right` says so; all of them are of class 1."""
    labels = (1,) * len(right)
    return Cell(
        key=Key(rival, name, seed, "1.1"),
        chosen="a",
        predictions=tuple(int(one) for one in right),
        labels=labels,
        cpu_seconds=cpu,
    )


@pytest.mark.parametrize("name", SETS)
def test_splits_of_a_set_are_disjoint_and_hold_every_class(name: str) -> None:
    available = dict.fromkeys("abcdefghij", 1000)
    for splits in draw(available, SETS[name], seed=1).values():
        rows = [row for split in splits.values() for row in split]
        assert len(rows) == len(set(rows))
        assert all(splits.values())


def test_a_long_tail_falls_by_its_factor_in_an_order_that_the_seed_draws() -> None:
    available = dict.fromkeys("abcdefghij", 1000)
    sizes = [
        {
            label: len(splits["train"]) + len(splits["val"])
            for label, splits in draw(available, SETS["longtail"], seed).items()
        }
        for seed in (0, 1)
    ]
    assert sorted(sizes[0].values()) == [10, 13, 17, 22, 28, 36, 46, 60, 77, 100]
    assert sizes[0] != sizes[1]


def test_another_seed_draws_other_test_images() -> None:
    first, second = (draw({"a": 700, "b": 700}, SETS["dogcat"], seed)["a"]["test"] for seed in (0, 1))
    assert set(first) != set(second)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(0)
    labels, predictions = chance.integers(0, 4, 50), chance.integers(0, 6, 50)
    assert macro_f1(labels, predictions) == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))


def test_a_cell_is_read_back_and_one_of_an_earlier_version_is_kept_aside(tmp_path: Path) -> None:
    cells, old = Cells(tmp_path), make_cell("timm", [True, False])
    cells.write(old)
    assert cells.read(old.key) == old
    new_key = Key("timm", "dogcat", 0, "2.1")
    assert cells.read(new_key) is None
    cells.write(Cell(key=new_key, missing="no timm"))
    assert cells.all() == [Cell(key=new_key, missing="no timm")]
    assert [path.name for path in (tmp_path / "cells" / "earlier").iterdir()] == ["dogcat-0-timm-1.1.json"]


def test_a_gain_is_the_mean_over_seeds_and_its_interval_shrinks_with_agreement() -> None:
    ours = {seed: make_cell("tlray", [True] * 80 + [False] * 20, seed=seed) for seed in (0, 1)}
    same_images = {seed: make_cell("timm", [True] * 70 + [False] * 30, seed=seed) for seed in (0, 1)}
    other_images = {seed: make_cell("timm", [False] * 30 + [True] * 70, seed=seed) for seed in (0, 1)}
    paired, crossed = paired_gain(ours, same_images), paired_gain(ours, other_images)
    assert paired.mean == pytest.approx(10)
    assert crossed.mean == pytest.approx(10)
    assert crossed.low < paired.low
    spread = 100 * np.sqrt(0.1 * 0.9 / 100 / 2)  # of the mean of two seeds
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_cells_of_different_test_images_cannot_be_compared() -> None:
    ours, theirs = make_cell("tlray", [True] * 3), make_cell("timm", [True] * 4)
    with pytest.raises(ValueError, match="different test images"):
        paired_gain({0: ours}, {0: theirs})


def test_the_summary_counts_sets_where_any_rival_is_ahead_beyond_the_interval() -> None:
    cells = [
        make_cell("tlray", [True] * 50 + [False] * 50, cpu=30),
        make_cell("timm", [True] * 90 + [False] * 10, cpu=20),
        make_cell("fastai", [True] * 40 + [False] * 60, cpu=60),
        make_cell("logistic_mean", [True] * 100, cpu=500),
        make_cell("tlray", [True] * 81 + [False] * 19, name="cifar10", cpu=30),
        make_cell("timm", [True] * 80 + [False] * 20, name="cifar10", cpu=20),
        Cell(key=Key("autogluon", "cifar10", 0, "1.1"), missing="not installed"),
    ]
    found = summary(cells)
    assert found["sets_below"] == ["dogcat"]
    assert found["below_best_beyond_interval"] == 1
    assert found["mean_gain_over_best_points"] == pytest.approx((-40 + 1) / 2)
    assert found["ensemble_gain_over_mean_points"] is None
    assert found["cost_over_dearest"] == 0.5  # 30 over fastai's 60


def test_the_ensemble_is_compared_with_the_mean_of_logistic_regressions() -> None:
    cells = [make_cell("tlray_ensemble", [True] * 9 + [False]), make_cell("logistic_mean", [True] * 8 + [False] * 2)]
    assert summary(cells)["ensemble_gain_over_mean_points"] == pytest.approx(10)


def test_without_a_cell_of_tlray_the_summary_is_empty() -> None:
    found = summary([make_cell("timm", [True])])
    assert found["below_best_beyond_interval"] is None
    assert cost_over_dearest([make_cell("timm", [True])]) is None


def test_the_table_goes_between_the_markers_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    text = table([make_cell("timm", [True, False]), Cell(key=Key("autogluon", "dogcat", 0, "1.1"), missing="no torch")])
    replace_table(page, text)
    assert "old" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    assert "50.0 / 33.3 (0)" in text
    assert "AutoGluon MultiModal did not run: no torch" in text


def test_the_cell_of_a_run_has_the_answers_of_its_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(str(tmp_path), num_test=6)
    champion = write_leaderboard(str(tmp_path)).champion
    assert champion is not None
    files = [f"s3://bucket/test/{i}.jpg" for i in (0, 3, 1, 4, 2, 5)]  # sorted by class: image i is of class i mod 3
    monkeypatch.setattr("benchmarks.quality_parts.sweep.listing", lambda *_: (files, [0, 0, 1, 1, 2, 2], []))
    cell = champion_cell(str(tmp_path), tmp_path, Key("tlray", "dogcat", 0, "x.1"))
    assert cell.chosen.startswith(champion.backbone)
    assert cell.accuracy == pytest.approx(100 * champion.test_accuracy)
    assert len(cell.candidates) == 13
    alone = ensemble_cell(str(tmp_path), tmp_path, Key("tlray_ensemble", "dogcat", 0, "x.1"), cell)
    assert (alone.predictions, alone.key.rival) == (cell.predictions, "tlray_ensemble")
