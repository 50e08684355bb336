"""Folders and files named like splits are splits where their structure says so, and classes where it does not."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray import storage
from tlray.config import DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.sources.layout import folder_layout
from tlray.data.split_names import split_named, split_of_file
from tlray.errors import DataError


def write(root: Path, **counts: int) -> Path:
    """Different images: write(root, **{"train/ant": 3}) makes train/ant/0.png to 2.png."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed = [*f"{folder}/{index}".encode()]
            pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")
    return root


def splits_of(*names: str, per_class: int = 4) -> dict[str, int]:
    return {f"{name}/{label}": per_class for name in names for label in ("ant", "bee")}


def manifest_of(train: str | Path, **fields: Any) -> Manifest:
    return make_manifest(DataConfig(train=str(train), **fields))


def counts_of(manifest: Manifest) -> dict[str, int]:
    return dict(Counter(image.split for image in manifest.images))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "VALIDATION", "Testing"),
        ("training_set", "dev", "test_set"),
        ("TRAINING", "eval", "test"),
    ],
)
def test_folders_named_like_splits_with_class_folders_in_them_are_splits(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, **splits_of(*names))
    (tmp_path / "README.md").write_text("about the images")
    manifest = manifest_of(tmp_path)
    assert manifest.classes == ("ant", "bee")
    assert counts_of(manifest) == {"train": 8, "val": 8, "test": 8}
    [note] = [note for note in manifest.notes if note.startswith("data.train")]
    assert all(f"{name}/ is {split_named(name)}" in note for name in names)
    assert note.endswith("its own splits are followed: 8 train, 8 val, 8 test")


def test_a_split_that_has_no_folder_is_split_off_by_contents(tmp_path: Path) -> None:
    write(tmp_path, **splits_of("train", per_class=40), **splits_of("valid"))
    counts = counts_of(manifest_of(tmp_path))
    assert counts["val"] == 8
    assert counts["train"] + counts["test"] == 80
    assert counts["test"] > 0
    shutil.rmtree(tmp_path / "valid")
    assert set(counts_of(manifest_of(tmp_path))) == {"train", "val", "test"}


def test_classes_called_train_are_classes_where_others_lie_beside(tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path, train=30, car=30, bus=30))
    assert manifest.classes == ("bus", "car", "train")
    assert "train/ too, beside bus/, car/" in manifest.notes[0]


def test_classes_called_train_with_folders_in_them_are_classes_too(tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path, **{"train/freight": 20, "train/metro": 20, "car/suv": 30, "bus/old": 30}))
    assert manifest.classes == ("bus", "car", "train")


def test_images_right_in_folders_named_like_splits_make_them_classes_and_the_note_says_so(tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path, train=30, test=30))
    assert manifest.classes == ("test", "train")
    assert "images lie right in it, in no class folder" in manifest.notes[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            {**splits_of("train", "val"), "test": 3},
            r"in test/ images in no class folder: .*exclude=\['test/\*'\]",
        ),
        (
            {**splits_of("train", "test"), "unlabelled": 3},
            r"and beside them unlabelled/: .*exclude=\['unlabelled/\*'\]",
        ),
        (splits_of("val", "test"), "none to train on"),
        ({"train/ant": 3, "train/bee": 3, "val/images": 3}, "no class folder in common"),
    ],
)
def test_what_fits_neither_reading_is_refused_with_a_remedy(
    folders: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"^data\.train: .*{message}"):
        manifest_of(write(tmp_path, **folders))


def test_excluded_folders_and_folders_without_images_are_no_classes_beside_splits(tmp_path: Path) -> None:
    write(tmp_path, **splits_of("train", "val", "test"), unlabelled=3)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    manifest = manifest_of(tmp_path, exclude=("unlabelled/*",))
    assert counts_of(manifest) == {"train": 8, "val": 8, "test": 8}


def test_splits_below_the_classes_are_followed_too(tmp_path: Path) -> None:
    write(tmp_path, **{f"{label}/{split}": 4 for label in ("ant", "bee") for split in ("train", "val", "test")})
    manifest = manifest_of(tmp_path)
    assert manifest.classes == ("ant", "bee")
    assert counts_of(manifest) == {"train": 8, "val": 8, "test": 8}
    write(tmp_path, **{"bee/more": 1})
    with pytest.raises(DataError, match=r"bee/more/0\.png lies in no split folder"):
        manifest_of(tmp_path)


def test_a_location_of_val_may_only_hold_val(tmp_path: Path) -> None:
    write(tmp_path / "set", **splits_of("train", "val", "test"))
    write(tmp_path / "other", **splits_of("validation"))
    with pytest.raises(DataError, match=r"^data\.val: .* has a folder 'test', which is not val: name data\.val=.*/val"):
        manifest_of(tmp_path / "set" / "train", val=str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"^data\.val: .* is given, but 8 images of data\.train are val too"):
        manifest_of(tmp_path / "set", val=str(tmp_path / "set" / "val"))
    own = {"val": str(tmp_path / "other"), "test": str(tmp_path / "set" / "test")}
    assert counts_of(manifest_of(tmp_path / "set" / "train", **own)) == {"train": 8, "val": 8, "test": 8}


def test_shards_named_like_splits_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "loose", **splits_of("train", "val", "test"))
    (tmp_path / "shards" / "data").mkdir(parents=True)
    for split, name in (("train", "train-00000-of-00001"), ("val", "validation-00000-of-00001"), ("test", "test_0")):
        paths = sorted((tmp_path / "loose" / split).rglob("*.png"))
        columns = {"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]}
        pq.write_table(pa.table(columns), tmp_path / "shards" / "data" / f"{name}.parquet")
    assert counts_of(manifest_of(tmp_path / "shards")) == {"train": 8, "val": 8, "test": 8}
    with pytest.raises(DataError, match=r"^data\.test: .*train-00000-of-00001\.parquet is train by its name, not test"):
        manifest_of(tmp_path / "loose" / "train", test=str(tmp_path / "shards"))
    shutil.copy(tmp_path / "shards" / "data" / "test_0.parquet", tmp_path / "shards" / "data" / "more.parquet")
    with pytest.raises(DataError, match=r"that of .*more\.parquet does not: leave it out with data\.exclude"):
        manifest_of(tmp_path / "shards")


def test_tables_named_like_splits_are_followed_and_their_columns_before_them(tmp_path: Path) -> None:
    write(tmp_path / "loose", **splits_of("train", "val", "test"))
    for split in ("train", "val", "test"):
        rows = [f"loose/{split}/{label}/{index}.png,{label}\n" for label in ("ant", "bee") for index in range(4)]
        (tmp_path / f"{split}.csv").write_text("uri,label\n" + "".join(rows))
    found = manifest_of(tmp_path, format="csv")
    expected = {(image.uri, image.split) for image in manifest_of(tmp_path / "loose").images}
    assert {(image.uri, image.split) for image in found.images} == expected
    rows = [
        f"loose/test/{label}/{index}.png,{label},{'Valid' if index else 'Test'}\n"
        for label in ("ant", "bee")
        for index in range(4)
    ]
    (tmp_path / "test.csv").write_text("uri,label,split\n" + "".join(rows))
    assert counts_of(manifest_of(tmp_path, format="csv")) == {"train": 8, "val": 14, "test": 2}


@pytest.mark.parametrize("word", ["train", "Training", "VAL", "valid", "validation", "dev", "test", " Test "])
def test_a_column_of_splits_may_use_any_word_for_them(word: str, tmp_path: Path) -> None:
    write(tmp_path, **splits_of("x", per_class=40))
    rows = [f"x/{label}/{n}.png,{label},{word if n < 5 else 'train'}\n" for label in ("ant", "bee") for n in range(40)]
    (tmp_path / "x.csv").write_text("uri,label,split\n" + "".join(rows))
    counts = counts_of(manifest_of(tmp_path / "x.csv"))
    split = split_named(word)
    assert split == "train" or counts[split] == 10


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00004.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("val/0.tar", "val"),
        ("test.csv.gz", "test"),
        ("trains-0.tar", None),
        ("images.csv", None),
        ("latest.csv", None),
    ],
)
def test_the_split_that_a_files_path_says(path: str, split: str | None) -> None:
    assert split_of_file(path) == split


def test_splits_on_s3_are_those_of_the_same_folder_on_disk(s3: Any, tmp_path: Path) -> None:
    write(tmp_path, **splits_of("train", "val", "test", per_class=2))
    storage.upload_folder(tmp_path, f"{s3.uri}/set")
    assert storage.list_folders(f"{s3.uri}/set") == ["test", "train", "val"] == storage.list_folders(str(tmp_path))
    there = folder_layout("data.train", f"{s3.uri}/set")
    assert there == folder_layout("data.train", str(tmp_path))
    assert there.splits == {"test": "test", "train": "train", "val": "val"}
