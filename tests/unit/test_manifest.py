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

from tlray.config import DataConfig
from tlray.data.manifest import Manifest, load_manifest, make_manifest, save_manifest
from tlray.errors import DataError, StorageError

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


def manifest_of(train: Path, seed: int = 0, **fields: Any) -> Manifest:
    return make_manifest(DataConfig(train=str(train), **fields), seed)


def splits_by_content(manifest: Manifest) -> dict[str, str]:
    return {image.content_id: image.split for image in manifest.images}


def test_images_carry_what_is_known_of_them(folder: Folder) -> None:
    train = folder(cat=4, dog=4)
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


def test_splits_are_stratified_by_the_stated_fractions(folder: Folder) -> None:
    manifest = manifest_of(folder(few=10, many=40), val_fraction=0.2, test_fraction=0.1)
    counts = Counter((image.split, image.label) for image in manifest.images)
    expected = {("test", 0): 1, ("val", 0): 2, ("train", 0): 7, ("test", 1): 4, ("val", 1): 8, ("train", 1): 28}
    assert counts == expected


@pytest.mark.parametrize("fraction", [0.01, 0.49])
@pytest.mark.parametrize("num_images", [3, 4, 5])
def test_every_class_has_an_image_in_every_split_however_few_there_are(
    num_images: int, fraction: float, folder: Folder
) -> None:
    manifest = manifest_of(folder(a=num_images, b=num_images), val_fraction=fraction, test_fraction=fraction)
    counts = Counter((image.split, image.label) for image in manifest.images)
    assert len(counts) == 6


def test_splits_depend_on_contents_and_seed_alone(folder: Folder, tmp_path: Path) -> None:
    train = folder(a=20, b=20)
    before = splits_by_content(manifest_of(train))
    for label in ("a", "b"):
        (tmp_path / "renamed" / label).mkdir(parents=True)
        names = random.Random(0).sample(range(100), 20)
        for path, name in zip(sorted((train / label).iterdir()), names, strict=True):
            shutil.copy(path, tmp_path / "renamed" / label / f"{name}.png")
    renamed = manifest_of(tmp_path / "renamed")
    assert splits_by_content(renamed) == before
    assert [image.content_id for image in renamed.images] == [image.content_id for image in manifest_of(train).images]
    assert splits_by_content(manifest_of(train, seed=1)) != before


def test_a_new_image_moves_few_others_to_another_split(folder: Folder) -> None:
    train = folder(a=40, b=40)
    before = splits_by_content(manifest_of(train))
    Image.new("RGB", (9, 9)).save(train / "a" / "new.png")
    after = splits_by_content(manifest_of(train))
    assert sum(after[content] != split for content, split in before.items()) <= 2


def test_identical_copies_share_a_split_also_across_classes(folder: Folder) -> None:
    train = folder(a=12, b=12)
    for index, path in enumerate(sorted((train / "a").iterdir())):
        shutil.copy(path, train / "a" / f"copy{index}.png")
        if index < 6:
            shutil.copy(path, train / "b" / f"copy{index}.png")
    manifest = manifest_of(train)
    assert len(manifest.images) == 42
    splits: dict[str, set[str]] = {}
    for image in manifest.images:
        splits.setdefault(image.content_id, set()).add(image.split)
    assert all(len(names) == 1 for names in splits.values())
    assert manifest.num_leaked == 0


def test_images_are_sorted_by_split_label_and_content(folder: Folder) -> None:
    manifest = manifest_of(folder(a=6, b=6))
    keys = [(image.split, image.label, image.content_id) for image in manifest.images]
    assert keys == sorted(keys)
    assert manifest.split("train") + manifest.split("val") == tuple(
        image for split in ("train", "val") for image in manifest.images if image.split == split
    )


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
    manifest = manifest_of(folder("train", a=10, b=10), val=str(folder("val", a=2, b=2)), test_fraction=0.3)
    assert Counter(image.split for image in manifest.images) == {"train": 14, "val": 4, "test": 6}
    assert {Path(image.uri).parts[-3] for image in manifest.split("val")} == {"val"}


def test_images_of_train_that_are_in_val_or_test_again_are_counted(folder: Folder) -> None:
    train, val = folder("train", a=4, b=4), folder("val", a=4, b=4)
    shutil.copy(train / "a" / "000.png", val / "a" / "leak.png")
    manifest = manifest_of(train, val=str(val), test=str(val))
    assert manifest.num_leaked == 2


def test_a_class_that_only_val_has_is_named_with_the_nearest_one(folder: Folder) -> None:
    train, val = folder("train", cats=3, dogs=3), folder("val", cat=1)
    with pytest.raises(DataError, match=r"data\.val: class 'cat' .* did you mean 'cats'\?"):
        manifest_of(train, val=str(val))


def test_hidden_files_and_files_outside_class_folders_are_not_looked_at(folder: Folder) -> None:
    train = folder(a=3, b=3)
    for name in ("README.md", ".hidden", "a/.DS_Store", ".cache/x/image.png", "b/.thumbs/image.png"):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_text("not an image")
    manifest = manifest_of(train)
    assert manifest.classes == ("a", "b")
    assert manifest.bad == ()


def test_excluded_patterns_are_left_out(folder: Folder) -> None:
    train = folder(a=4, b=4, c=4)
    (train / "a" / "notes.txt").write_text("not an image")
    (train / "a" / "deep").mkdir()
    (train / "a" / "deep" / "notes.txt").write_text("not an image")
    manifest = manifest_of(train, exclude=("*.txt", "c/*", "b/003.png"))
    assert manifest.classes == ("a", "b")
    assert len(manifest.images) == 7
    assert manifest.bad == ()


def test_images_in_folders_below_their_class_belong_to_it(folder: Folder) -> None:
    train = folder(a=3, b=3)
    (train / "a" / "more").mkdir()
    shutil.move(train / "a" / "000.png", train / "a" / "more" / "000.png")
    assert Counter(image.label for image in manifest_of(train).images) == {0: 3, 1: 3}


def test_bad_images_are_left_out_with_their_reasons(folder: Folder) -> None:
    train = folder(a=10, b=10)
    (train / "a" / "page.jpg").write_text("<html>404</html>")
    (train / "b" / "empty.jpg").write_bytes(b"")
    (train / "b" / "nowhere.png").symlink_to("gone.png")
    manifest = manifest_of(train, max_bad_fraction=0.2)
    assert len(manifest.images) == 20
    assert [(Path(image.uri).name, image.reason) for image in manifest.bad] == [
        ("page.jpg", "a web page, not an image"),
        ("empty.jpg", "the file is empty"),
        ("nowhere.png", "does not exist"),
    ]


def test_a_name_that_is_not_utf8_is_bad_with_a_reason(folder: Folder) -> None:
    train = folder(a=3, b=3)
    shutil.copy(train / "a" / "000.png", os.path.join(os.fsencode(train / "a"), b"\xff.png"))
    manifest = manifest_of(train, max_bad_fraction=0.5)
    assert [image.reason for image in manifest.bad] == ["its name is not valid UTF-8"]
    save_manifest(manifest, str(train.parent / "run"))
    assert load_manifest(str(train.parent / "run")) == manifest


def test_the_saved_manifest_comes_back_equal_and_is_readable_by_others(folder: Folder, tmp_path: Path) -> None:
    train = folder(a=4, b=4)
    (train / "a" / "page.jpg").write_text("<html>404</html>")
    manifest = manifest_of(train, max_bad_fraction=0.5)
    save_manifest(manifest, str(tmp_path / "run"))
    assert load_manifest(str(tmp_path / "run")) == manifest
    table = pq.read_table(tmp_path / "run" / "manifest.parquet")
    assert table.column_names == ["uri", "label", "split", "content_id", "bytes", "width", "height", "status"]
    assert Counter(table.column("status").to_pylist()) == {"ok": 8, "a web page, not an image": 1}
    assert (tmp_path / "run" / "bad_images.jsonl").read_text() == (
        f'{{"uri": "{train}/a/page.jpg", "reason": "a web page, not an image"}}\n'
    )


def test_something_else_in_the_manifests_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_text("nonsense")
    with pytest.raises(StorageError, match="is not a manifest"):
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


@pytest.mark.parametrize("num_images", [1, 2])
def test_a_class_with_fewer_images_than_splits_is_named_with_its_count(num_images: int, folder: Folder) -> None:
    assert_refused(folder(many=9, few=num_images), f"class 'few' has {num_images} different readable images")


def test_copies_do_not_make_a_class_large_enough(folder: Folder) -> None:
    train = folder(many=9, copies=1)
    for index in range(5):
        shutil.copy(train / "copies" / "000.png", train / "copies" / f"copy{index}.png")
    assert_refused(train, "class 'copies' has 1 different readable images")


def test_a_class_whose_images_are_all_bad_is_named(folder: Folder) -> None:
    train = folder(a=9, b=9)
    (train / "c").mkdir()
    (train / "c" / "page.jpg").write_text("<html>404</html>")
    assert_refused(train, "class 'c' has 0 different readable images", max_bad_fraction=0.5)


def test_unreadable_images_alone_are_refused_with_the_first_reasons(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(3):
            (tmp_path / label / f"{index}.jpg").write_text("<html>404</html>")
    assert_refused(tmp_path, "none of the 6 files .*/a/0.jpg: a web page, not an image;", max_bad_fraction=1.0)


def test_too_many_bad_images_are_refused_with_counts_reasons_and_the_remedy(folder: Folder) -> None:
    train = folder(a=6, b=6)
    for index in range(3):
        (train / "a" / f"page{index}.jpg").write_text("<html>404</html>")
    assert_refused(train, r"3 of 15 images cannot be read.*max_bad_fraction=0\.05.*a web page", max_bad_fraction=0.05)
    with pytest.raises(DataError) as caught:
        manifest_of(train)
    suggested = re.search(r"\(data\.max_bad_fraction=([0-9.]+) would", str(caught.value))
    assert suggested is not None
    assert len(manifest_of(train, max_bad_fraction=float(suggested[1])).bad) == 3


def test_the_real_folder_with_its_gif_placeholder_is_read_whole(shared_dir: Path) -> None:
    data = shared_dir / "data" / "hymenoptera"
    manifest = manifest_of(data / "train", val=str(data / "val"), test=str(data / "val"))
    assert Counter(image.split for image in manifest.images) == {"train": 245, "val": 153, "test": 153}
    assert manifest.classes == ("ants", "bees")
    assert manifest.bad == ()
