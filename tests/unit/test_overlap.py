"""The same image in two splits or under two classes is counted, named, and refused where it is too many."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_run import make_run
from PIL import Image as PillowImage
from rich.console import Console
from small_bundle import COUNTS, small_bundle

from tests.plans import empty_plan
from tlray.config import DataConfig, RunConfig
from tlray.data.images import SPLITS, Image, Images
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.overlap import find_overlap
from tlray.errors import DataError
from tlray.export.card import write_card
from tlray.export.files import BundleConfig
from tlray.export.formats import Agreement
from tlray.planning.doctor.locations import check_contents
from tlray.ranking.result import Ranking
from tlray.ranking.tables import ranking_table
from tlray.report import leaderboard_table, write_report
from tlray.runs.folder import read_format, write_format
from tlray.runs.manifest import load_manifest, save_manifest
from tlray.runs.plan import plan_tables
from tlray.runs.results import Leaderboard

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes folders of different tiny images: folder("train", ant=5, bee=4)."""
    numbers = iter(range(10_000))

    def make(name: str, **counts: int) -> Path:
        for label, count in counts.items():
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = np.random.default_rng(next(numbers)).integers(0, 256, (5, 7, 3), dtype=np.uint8)
                PillowImage.fromarray(pixels).save(tmp_path / name / label / f"{index:03}.png")
        return tmp_path / name

    return make


def manifest_of(train: Path, **fields: Any) -> Manifest:
    return make_manifest(DataConfig(train=str(train), **{k: str(v) if k in SPLITS else v for k, v in fields.items()}))


def test_val_as_a_copy_of_train_is_refused_with_numbers_and_names(folder: Folder, tmp_path: Path) -> None:
    train, test = folder("train", ant=6, bee=6), folder("test", ant=3, bee=3)
    shutil.copytree(train, tmp_path / "val")
    with pytest.raises(DataError) as caught:
        manifest_of(train, val=tmp_path / "val", test=test)
    message = str(caught.value)
    assert message.startswith("data.val: 12 of 12 val images are also in train, more than data.max_leaked_fraction=0")
    assert message.count(" = ") == 10
    assert f"{tmp_path}/val/ant/" in message
    assert "(val, 'ant')" in message
    assert "(train, 'ant')" in message
    assert "\n" not in message


def test_few_leaked_images_are_a_warning_that_the_run_folder_keeps(folder: Folder, tmp_path: Path) -> None:
    train, val, test = folder("train", ant=6, bee=6), folder("val", ant=3, bee=3), folder("test", ant=3, bee=3)
    shutil.copy(train / "ant" / "000.png", val / "ant" / "again.png")
    shutil.copy(val / "bee" / "001.png", test / "bee" / "again.png")
    manifest = manifest_of(train, val=val, test=test, max_leaked_fraction=0.2)
    assert manifest.warnings == (
        f"1 of 7 val images is also in train, byte for byte: scores on val flatter. {val}/ant/again.png (val, 'ant') = "
        f"{train}/ant/000.png (train, 'ant')",
        f"1 of 7 test images is also in val, byte for byte: scores on test flatter. {test}/bee/again.png (test, 'bee')"
        f" = {val}/bee/001.png (val, 'bee')",
    )
    write_format(str(tmp_path / "run"), save_manifest(manifest, str(tmp_path / "run")))
    assert load_manifest(str(tmp_path / "run")) == manifest


def test_the_bound_is_a_fraction_of_the_split_that_is_scored(folder: Folder) -> None:
    train, val, test = folder("train", ant=6, bee=6), folder("val", ant=50, bee=49), folder("test", ant=1, bee=1)
    shutil.copy(train / "ant" / "000.png", val / "ant" / "again.png")
    assert len(manifest_of(train, val=val, test=test).warnings) == 1  # 1 of 100
    (val / "bee" / "000.png").unlink()
    with pytest.raises(DataError, match=r"^data\.val: 1 of 99 val images is also in train"):
        manifest_of(train, val=val, test=test)


def test_one_photo_under_two_classes_is_left_out_with_both_of_its_names(folder: Folder) -> None:
    train = folder("train", roses=30, tulips=30)
    shutil.copy(train / "roses" / "007.png", train / "tulips" / "copy.png")
    manifest = manifest_of(train)
    rose, tulip = f"{train}/roses/007.png", f"{train}/tulips/copy.png"
    assert len(manifest.images) == 59
    assert not {rose, tulip} & {image.uri for image in manifest.images}
    assert {image.uri: image.reason for image in manifest.bad} == {
        rose: f"the same contents as {tulip}, which is 'tulips'",
        tulip: f"the same contents as {rose}, which is 'roses'",
    }
    [warning] = manifest.warnings
    assert warning.startswith("2 images are left out, as the same contents have two or more classes. ")
    assert rose in warning
    assert tulip in warning


def test_a_class_whose_images_are_all_in_another_one_is_refused(folder: Folder) -> None:
    train = folder("train", ant=20, bee=20, wasp=100)
    for path in (train / "ant").iterdir():
        shutil.copy(path, train / "wasp" / f"ant-{path.name}")
    with pytest.raises(DataError, match=r"^data\.train: 20 of 20 different images of class 'ant' are under another"):
        manifest_of(train, max_leaked_fraction=1)


def test_a_leak_under_another_class_counts_as_one(folder: Folder) -> None:
    train, val, test = folder("train", ant=9, bee=9), folder("val", ant=9, bee=9), folder("test", ant=3, bee=3)
    shutil.copy(train / "ant" / "000.png", val / "bee" / "again.png")
    with pytest.raises(DataError, match=r"^data\.val: 1 of 19 val images is also in train"):
        manifest_of(train, val=val, test=test)


def test_copies_within_one_class_and_split_are_nobodys_business(folder: Folder) -> None:
    train = folder("train", ant=30, bee=30)
    shutil.copy(train / "ant" / "000.png", train / "ant" / "again.png")
    manifest = manifest_of(train)
    assert (len(manifest.images), manifest.warnings, manifest.bad) == (61, (), ())


IMAGE_FACTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.sampled_from(SPLITS)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(IMAGE_FACTS)
def test_counts_are_those_of_a_comparison_of_every_two_images(facts: list[tuple[int, int, Any]]) -> None:
    # contents that share their first eight bytes, which is what is sorted, are still told apart
    images = Images.of(
        Image(str(row), label, split, f"{content % 3:016x}{content:048x}", 1, 1, 1)
        for row, (content, label, split) in enumerate(facts)
    )
    overlap = find_overlap(images, ("a", "b", "c"))
    for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
        elsewhere = {content for content, _, its in facts if its == other}
        expected = sum(content in elsewhere for content, _, its in facts if its == split)
        assert sum(leak.num_images for leak in overlap.leaks if (leak.split, leak.other) == (split, other)) == expected
    conflicting = [len({label for other, label, _ in facts if other == content}) > 1 for content, _, _ in facts]
    assert overlap.conflicting.tolist() == conflicting
    assert set(overlap.other_copies) == set(np.flatnonzero(conflicting).tolist())
    for row, copy in overlap.other_copies.items():
        assert copy.content_id == images[row].content_id
        assert copy.label != images[row].label


def test_every_output_shows_the_warnings(folder: Folder, tmp_path: Path) -> None:
    train, val, test = folder("train", ant=6, bee=6), folder("val", ant=3, bee=3), folder("test", ant=3, bee=3)
    shutil.copy(train / "ant" / "000.png", val / "ant" / "again.png")
    fields = {"train": str(train), "val": str(val), "test": str(test), "max_leaked_fraction": 1}
    manifest = make_manifest(DataConfig.model_validate(fields))
    [warning] = manifest.warnings
    plan = empty_plan(
        warnings=manifest.warnings,
    )
    ranking = Ranking(
        score="knn", num_images=9, num_classes=2, largest_class=0.5, seconds=1, rows=(), warnings=manifest.warnings
    )
    board = Leaderboard(rows=(), num_test_images=None, no_gain_reason=None, seed=0, warnings=manifest.warnings)
    for shown in (plan_tables(plan), ranking_table(ranking), leaderboard_table(board)):
        console = Console(file=io.StringIO(), width=2000)
        console.print(shown)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert "".join(f"warning: {warning}".split()) in "".join(printed.split())  # folded to the table's width
    for made in (plan, ranking, board):
        assert warning in made.model_dump(mode="json")["warnings"]

    plain = {
        "name": "x",
        "storage": str(tmp_path / "runs"),
        "data": fields,
        "backbones": [{"id": "timm/test_resnet", "weights": "none"}],
        "strategies": ["linear_probe"],
    }
    [check] = check_contents(RunConfig.model_validate(plain))
    assert (check.status, check.detail) == ("warning", warning)


def test_the_model_card_and_the_report_show_the_warnings(image_folder: Path, tmp_path: Path) -> None:
    bundle = small_bundle(image_folder).folder
    config = BundleConfig.model_validate_json((bundle / "config.json").read_text())
    metrics = json.loads((bundle / "metrics.json").read_text())
    agreement = Agreement.model_validate(metrics["agreement"])
    write_card(tmp_path, config, metrics, COUNTS, agreement, ("3 of 9 val images are also in train",))
    assert "**Warning:** 3 of 9 val images are also in train" in (tmp_path / "MODEL_CARD.md").read_text()
    assert "**Warning:**" not in (bundle / "MODEL_CARD.md").read_text()

    run = tmp_path / "run"
    make_run(str(run))
    manifest = load_manifest(str(run))
    manifest = replace(manifest, warnings=("3 of 9 val images are also in train",))
    write_format(str(run), {**read_format(str(run)), **save_manifest(manifest, str(run))})
    page = Path(write_report(str(run))).read_text()
    assert '<p class="bad path">3 of 9 val images are also in train</p>' in page
