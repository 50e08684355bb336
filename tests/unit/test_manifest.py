"""What a run's images are: classes, splits, bad ones, and every way in which a folder can be unusable."""

import hashlib
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray import storage
from tlray.config import DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.splits import position
from tlray.errors import DataError, StorageError
from tlray.runs.folder import write_format
from tlray.runs.manifest import load_manifest, save_manifest

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes folders of tiny images, all different: folder("train", cat=5, dog=4)."""
    numbers = iter(range(10_000))

    def make(name: str = "train", **counts: int) -> Path:
        for label, count in counts.items():
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = np.random.default_rng(next(numbers)).integers(0, 256, (5, 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{index:03}.png")
        return tmp_path / name

    return make


@pytest.fixture
def own(folder: Folder) -> dict[str, str]:
    """Locations of val and test, for tests with too few images to split any off."""
    return {"val": str(folder("val", a=1, b=1)), "test": str(folder("test", a=1, b=1))}


def manifest_of(train: Path, **fields: Any) -> Manifest:
    return make_manifest(DataConfig(train=str(train), **fields))


def splits_by_content(manifest: Manifest) -> dict[str, str]:
    return {image.content_id: image.split for image in manifest.images}


def test_images_carry_what_is_known_of_them(folder: Folder) -> None:
    train = folder(cat=25, dog=25)
    manifest = manifest_of(train)
    assert manifest.classes == ("cat", "dog")
    assert manifest.bad == ()
    assert {image.uri for image in manifest.images} == {str(path) for path in train.rglob("*.png")}
    for image in manifest.images:
        data = Path(image.uri).read_bytes()
        assert image.content_id == hashlib.sha256(data).hexdigest()
        assert image.num_bytes == len(data)
        assert (image.width, image.height) == (7, 5)
        assert manifest.classes[image.label] == Path(image.uri).parent.name
        [listed] = [info for info in storage.list_files(str(train)) if info.uri == image.uri]
        assert (image.version, image.shard, image.row) == (listed.version, "", -1)


def test_splits_depend_on_contents_and_split_seed_alone(folder: Folder, tmp_path: Path) -> None:
    train = folder(a=25, b=25)
    before = splits_by_content(manifest_of(train))
    for label in ("a", "b"):
        (tmp_path / "renamed" / label).mkdir(parents=True)
        names = random.Random(0).sample(range(100), 25)
        for path, name in zip(sorted((train / label).iterdir()), names, strict=True):
            shutil.copy(path, tmp_path / "renamed" / label / f"{name}.png")
    renamed = manifest_of(tmp_path / "renamed")
    assert splits_by_content(renamed) == before
    assert [image.content_id for image in renamed.images] == [image.content_id for image in manifest_of(train).images]
    assert splits_by_content(manifest_of(train, split_seed=1)) != before


def test_new_images_and_classes_move_no_other_to_another_split(folder: Folder) -> None:
    train = folder(a=30, b=30)
    before = splits_by_content(manifest_of(train))
    folder(a=40, c=30)  # replaces all of class a, and adds a class
    for index in range(20):
        Image.new("RGB", (9, 9 + index)).save(train / "b" / f"new{index}.png")
    after = splits_by_content(manifest_of(train))
    kept = before.keys() & after.keys()
    assert len(kept) == 30
    assert all(after[content] == before[content] for content in kept)


def test_identical_copies_share_a_split(folder: Folder) -> None:
    train = folder(a=24, b=24)
    for index, path in enumerate(sorted((train / "a").iterdir())):
        shutil.copy(path, train / "a" / f"copy{index}.png")
    manifest = manifest_of(train)
    assert len(manifest.images) == 72
    splits: dict[str, set[str]] = {}
    for image in manifest.images:
        splits.setdefault(image.content_id, set()).add(image.split)
    assert all(len(names) == 1 for names in splits.values())
    assert manifest.num_leaked == 0


def test_images_are_sorted_by_split_label_and_content(folder: Folder) -> None:
    manifest = manifest_of(folder(a=25, b=25))
    keys = [(image.split, image.label, image.content_id) for image in manifest.images]
    assert keys == sorted(keys)
    for split in ("train", "val", "test"):
        assert manifest.split(split) == [image for image in manifest.images if image.split == split]  # type: ignore[arg-type]


def test_own_val_and_test_are_taken_whole_and_may_lack_a_class(folder: Folder) -> None:
    train, val, test = folder("train", a=3, b=3, c=3), folder("val", a=2, b=1), folder("test", c=4)
    manifest = manifest_of(train, val=str(val), test=str(test))
    counts = Counter((image.split, manifest.classes[image.label]) for image in manifest.images)
    assert counts == {
        ("train", "a"): 3,
        ("train", "b"): 3,
        ("train", "c"): 3,
        ("val", "a"): 2,
        ("val", "b"): 1,
        ("test", "c"): 4,
    }


def test_with_an_own_val_only_test_is_split_off(folder: Folder) -> None:
    train, val = folder("train", a=25, b=25), folder("val", a=2, b=2)
    manifest = manifest_of(train, val=str(val), test_fraction=0.3)
    assert {image.uri for image in manifest.split("val")} == {str(path) for path in val.rglob("*.png")}
    ids = {hashlib.sha256(path.read_bytes()).hexdigest() for path in train.rglob("*.png")}
    tested = {content_id for content_id in ids if position(0, content_id) < 0.3}
    assert {image.content_id for image in manifest.split("test")} == tested


def test_images_of_train_that_are_in_val_or_test_again_are_counted(folder: Folder) -> None:
    train, val = folder("train", a=4, b=4), folder("val", a=4, b=4)
    shutil.copy(train / "a" / "000.png", val / "a" / "leak.png")
    manifest = manifest_of(train, val=str(val), test=str(val), max_leaked_fraction=1)
    assert manifest.num_leaked == 2


def test_a_class_that_only_val_has_is_named_with_the_nearest_one(folder: Folder) -> None:
    train, val = folder("train", cats=3, dogs=3), folder("val", cat=1)
    with pytest.raises(DataError, match=r"data\.val: class 'cat' .* did you mean 'cats'\?"):
        manifest_of(train, val=str(val))


def test_hidden_files_and_files_outside_class_folders_are_not_looked_at(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=3, b=3)
    for name in ("README.md", ".hidden", "a/.DS_Store", ".cache/x/image.png", "b/.thumbs/image.png"):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_text("not an image")
    manifest = manifest_of(train, **own)
    assert manifest.classes == ("a", "b")
    assert manifest.bad == ()


def test_excluded_patterns_are_left_out(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=4, b=4, c=4)
    (train / "a" / "notes.txt").write_text("not an image")
    (train / "a" / "deep").mkdir()
    (train / "a" / "deep" / "notes.txt").write_text("not an image")
    manifest = manifest_of(train, **own, exclude=("*.txt", "c/*", "b/003.png"))
    assert manifest.classes == ("a", "b")
    assert len(manifest.split("train")) == 7
    assert manifest.bad == ()


def test_images_in_folders_below_their_class_belong_to_it(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=3, b=3)
    (train / "a" / "more").mkdir()
    shutil.move(train / "a" / "000.png", train / "a" / "more" / "000.png")
    assert Counter(image.label for image in manifest_of(train, **own).split("train")) == {0: 3, 1: 3}


def test_bad_images_are_left_out_with_their_reasons(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=10, b=10)
    (train / "a" / "page.jpg").write_text("<html>404</html>")
    (train / "b" / "empty.jpg").write_bytes(b"")
    (train / "b" / "nowhere.png").symlink_to("gone.png")
    manifest = manifest_of(train, **own, max_bad_fraction=0.2)
    assert len(manifest.images) == 24
    assert [(Path(image.uri).name, image.reason) for image in manifest.bad] == [
        ("page.jpg", "a web page, not an image"),
        ("empty.jpg", "the file is empty"),
        ("nowhere.png", "does not exist"),
    ]


def test_a_name_that_is_not_utf8_is_bad_with_a_reason(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=3, b=3)
    shutil.copy(train / "a" / "000.png", os.path.join(os.fsencode(train / "a"), b"\xff.png"))
    manifest = manifest_of(train, **own, max_bad_fraction=0.5)
    assert [image.reason for image in manifest.bad] == ["its name is not valid UTF-8"]
    write_format(str(train.parent / "run"), save_manifest(manifest, str(train.parent / "run")))
    assert load_manifest(str(train.parent / "run")) == manifest


def test_the_saved_manifest_comes_back_equal_and_is_readable_by_others(
    folder: Folder, own: dict[str, str], tmp_path: Path
) -> None:
    train = folder(a=4, b=4)
    (train / "a" / "page.jpg").write_text("<html>404</html>")
    manifest = manifest_of(train, **own, max_bad_fraction=0.5)
    write_format(str(tmp_path / "run"), save_manifest(manifest, str(tmp_path / "run")))
    assert load_manifest(str(tmp_path / "run")) == manifest
    table = pq.read_table(tmp_path / "run" / "manifest.parquet")
    assert table.column_names[:8] == ["uri", "label", "split", "content_id", "bytes", "width", "height", "status"]
    assert table.column_names[8:] == ["version", "shard", "row"]
    assert Counter(table.column("status").to_pylist()) == {"ok": 12, "a web page, not an image": 1}
    assert (tmp_path / "run" / "bad_images.jsonl").read_text() == (
        f'{{"uri": "{train}/a/page.jpg", "reason": "a web page, not an image"}}\n'
    )


def test_something_else_in_the_manifests_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_text("nonsense")
    write_format(str(tmp_path), {"manifest.parquet": "0" * 64})
    with pytest.raises(StorageError, match=r"manifest\.parquet is damaged: restore it from a copy"):
        load_manifest(str(tmp_path))


def assert_refused(train: Path, message: str, **fields: Any) -> None:
    """One line that matches, and the exit code of the user's mistake."""
    with pytest.raises(DataError, match=message) as caught:
        manifest_of(train, **fields)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", f"^data.train: {tmp_path}/nowhere does not exist$")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "class without images").mkdir()
    assert_refused(tmp_path, re.escape(f"data.train: {tmp_path} holds no class folders with images (it is empty)"))


def test_images_without_class_folders_are_counted(folder: Folder) -> None:
    train = folder(a=3)
    assert_refused(train / "a", r"\(3 files lie right in it\); expected CLASS/image.jpg")


def test_a_single_class_is_named(folder: Folder) -> None:
    assert_refused(folder(only=5), "one class only, 'only'")


def test_a_class_without_an_image_in_train_is_named_with_its_count(folder: Folder) -> None:
    train = folder(many=40, few=1)
    [only] = (train / "few").iterdir()
    content_id = hashlib.sha256(only.read_bytes()).hexdigest()
    seed = next(seed for seed in range(100) if position(seed, content_id) < 0.4)
    fields = {"test_fraction": 0.4, "val_fraction": 0.2, "split_seed": seed}
    message = rf"class 'few' has 1 different readable images, none of them in train \(data.split_seed={seed}\)"
    assert_refused(train, message, **fields)
    for index in range(5):
        shutil.copy(only, train / "few" / f"copy{index}.png")
    assert_refused(train, message, **fields)


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_is_named_with_the_remedies(split: str, folder: Folder) -> None:
    train = folder(a=3, b=3)
    message = f"none of its images falls to {split} .data.{split}_fraction=0.0001.*name data.{split}, or"
    fractions = {"val_fraction": 0.0001, "test_fraction": 0.0001}
    other = "test" if split == "val" else "val"
    assert_refused(train, message, **fractions, **{other: str(folder(other, a=1))})


def test_an_own_val_without_a_readable_image_is_named(folder: Folder, own: dict[str, str]) -> None:
    for path in Path(own["val"]).rglob("*.png"):
        path.write_text("<html>404</html>")
    assert_refused(folder(a=9, b=9), "^data.val: .*/val holds no readable image$", **own, max_bad_fraction=0.5)


def test_a_class_whose_images_are_all_bad_is_named(folder: Folder, own: dict[str, str]) -> None:
    train = folder(a=9, b=9)
    (train / "c").mkdir()
    (train / "c" / "page.jpg").write_text("<html>404</html>")
    assert_refused(train, "class 'c' has 0 different readable images", **own, max_bad_fraction=0.5)


def test_unreadable_images_alone_are_refused_with_the_first_reasons(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(3):
            (tmp_path / label / f"{index}.jpg").write_text("<html>404</html>")
    assert_refused(tmp_path, "none of the 6 files .*/a/0.jpg: a web page, not an image;", max_bad_fraction=1.0)


def test_too_many_bad_images_are_refused_with_counts_reasons_and_the_remedy(
    folder: Folder, own: dict[str, str]
) -> None:
    train = folder(a=6, b=6)
    for index in range(3):
        (train / "a" / f"page{index}.jpg").write_text("<html>404</html>")
    assert_refused(
        train, r"3 of 19 images cannot be read.*max_bad_fraction=0\.05.*a web page", **own, max_bad_fraction=0.05
    )
    with pytest.raises(DataError) as caught:
        manifest_of(train, **own)
    suggested = re.search(r"\(data\.max_bad_fraction=([0-9.]+) would", str(caught.value))
    assert suggested is not None
    assert len(manifest_of(train, **own, max_bad_fraction=float(suggested[1])).bad) == 3


def test_the_real_folder_with_its_gif_placeholder_is_read_whole(shared_dir: Path) -> None:
    data = shared_dir / "data" / "hymenoptera"
    manifest = manifest_of(data / "train", val=str(data / "val"), test=str(data / "val"), max_leaked_fraction=1)
    assert Counter(image.split for image in manifest.images) == {"train": 245, "val": 153, "test": 153}
    assert manifest.classes == ("ants", "bees")
    assert manifest.bad == ()
