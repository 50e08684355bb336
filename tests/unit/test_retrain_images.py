"""What is new in a data set, which images decide, and what a listing says without reading one."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tlray.config import DataConfig
from tlray.data.images import Image
from tlray.data.manifest import Manifest, make_manifest
from tlray.workflows.retrain.changes import all_still_there, differing, list_data
from tlray.workflows.retrain.images import compare, judged_images, training_images


def image(content: str, label: int, split: Any) -> Image:
    return Image(f"{content}.jpg", label, split, hashlib.sha256(content.encode()).hexdigest(), 1, 1, 1)


def manifest(*images: tuple[str, int, Any], classes: tuple[str, ...] = ("a", "b")) -> Manifest:
    return Manifest(classes, [image(*one) for one in images])


BEFORE = manifest(("1", 0, "train"), ("2", 1, "train"), ("3", 0, "val"), ("4", 1, "test"), ("5", 0, "test"))


def test_what_came_went_and_changed_its_class_is_counted_by_contents() -> None:
    now = manifest(
        ("1", 1, "train"), ("2", 2, "train"), ("3", 1, "val"), ("4", 2, "test"), ("6", 0, "test"), ("7", 1, "train"),
        classes=("new", "a", "b"),
    )  # fmt: skip
    found = compare(now, BEFORE)
    assert (found.num_images, found.num_new, found.num_gone, found.num_relabelled) == (6, 2, 1, 0)
    assert found.new_by_split == {"test": 1, "train": 1}
    assert (found.new_classes, found.gone_classes) == (("new",), ())
    assert found.shares == {"new": (0, 0), "a": (1, 1), "b": (1, 0)}
    assert compare(BEFORE, now).gone_classes == ("new",)
    moved = manifest(("1", 1, "train"), ("2", 1, "train"))
    assert compare(moved, BEFORE).num_relabelled == 1


def test_what_either_model_has_learned_from_decides_nothing() -> None:
    now = manifest(
        ("2", 1, "test"), ("3", 0, "test"), ("4", 1, "test"), ("6", 0, "test"), ("7", 0, "test"), ("7", 0, "val")
    )
    kept, left_out = judged_images(now, BEFORE)
    assert [one.uri for one in kept] == ["4.jpg", "6.jpg"]
    assert left_out == 3
    assert judged_images(now, None)[1] == 1, "of an unknown champion nothing is known"


def test_copies_of_one_image_count_once() -> None:
    twice = Manifest(("a", "b"), [image("4", 1, "test"), image("4", 1, "test")])
    assert len(judged_images(twice, None)[0]) == 1


def test_new_training_images_are_compared_with_old_ones_of_each_a_fair_draw() -> None:
    now = manifest(*((str(number), 0, "train") for number in range(100)), ("2", 1, "train"), ("200", 0, "test"))
    old, new = training_images(now, BEFORE, 10)
    assert {one.uri for one in old} == {"1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"}
    assert len(new) == 10
    assert training_images(now, BEFORE, 20)[1][:10] == new


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


def data(folder: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"train": str(folder), "val_fraction": 0.25, "test_fraction": 0.25, **fields})


def test_new_images_move_no_old_one_to_another_split(folder: Path) -> None:
    before = {one.content_id: one.split for one in make_manifest(data(folder)).images}
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))[:20]):
        (path.parent / f"new{number}.jpg").write_bytes(path.read_bytes() + b"%d" % number)
    after = {one.content_id: one.split for one in make_manifest(data(folder)).images}
    assert len(after) == len(before) + 20
    assert {content: after[content] for content in before} == before


def test_a_listing_is_the_same_until_a_file_comes_goes_or_is_written_to(folder: Path) -> None:
    first = list_data(data(folder))
    assert list_data(data(folder)) == first
    path = folder / "red" / "00.jpg"
    stat = path.stat()
    os.utime(path, ns=(1, 1))
    assert list_data(data(folder)) != first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list_data(data(folder)) == first
    moved = path.rename(folder / "blue" / "moved.jpg")
    assert list_data(data(folder)) != first
    moved.rename(path)
    assert list_data(data(folder, exclude=["red/01.jpg"])) != first


def test_images_that_a_table_names_are_looked_at_on_local_disk(folder: Path, tmp_path: Path) -> None:
    rows = [f"images/{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(["uri,label", *rows]))
    first = list_data(data(table))
    path = folder / "red" / "00.jpg"
    path.write_bytes(path.read_bytes() + b"!")
    assert list_data(data(table)) != first


def test_all_of_a_manifest_is_still_there_until_one_goes_changes_or_has_another_class(folder: Path) -> None:
    before = make_manifest(data(folder))
    (folder / "red" / "new.jpg").write_bytes(b"anything")
    assert all_still_there(before, data(folder))
    path = folder / "red" / "00.jpg"
    contents = path.read_bytes()
    os.utime(path, ns=(1, 1))
    assert not all_still_there(before, data(folder))
    path.unlink()
    assert not all_still_there(before, data(folder))
    assert contents


def test_what_differs_between_two_configurations_is_named_by_its_keys() -> None:
    old = {"seed": 0, "training": {"lr": 0.1, "epochs": 3}, "space": {}}
    new = {"seed": 0, "training": {"lr": 0.2, "epochs": 3}, "space": {"lr": {"grid": [1, 2]}}}
    assert differing(old, new) == "space.lr.grid (none) -> [1, 2], training.lr 0.1 -> 0.2"
    assert differing(old, old) == ""
    many = {str(number): 1 for number in range(8)}
    assert differing({}, many).endswith("4 (none) -> 1, 3 more")
