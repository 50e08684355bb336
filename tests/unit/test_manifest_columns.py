"""A manifest's images are columns that look like a sequence of objects; fingerprints, notes and places in shards."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.data.images import Image, Images
from tlray.data.manifest import BadImage, Manifest
from tlray.runs.folder import write_format
from tlray.runs.manifest import load_manifest, save_manifest

SPLITS = ("test", "train", "val")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_images(count: int = 300) -> list[Image]:
    return [
        Image(f"s3://b/{i}é.jpg", i % 3, SPLITS[i * 3 // count], sha(str(i)), 10 + i, 640, 480, f"etag{i}")  # type: ignore[arg-type]
        for i in range(count)
    ]


def make_manifest_of(images: list[Image]) -> Manifest:
    return Manifest(("a", "b", "c"), images, (BadImage("s3://b/bad.jpg", "the file is empty"),), ("a note",))


def test_images_are_a_sequence_like_the_list_that_they_were_made_from() -> None:
    objects = make_images()
    images = Images.of(iter(objects))
    assert list(images) == objects
    assert images == objects
    assert images == tuple(objects)
    assert images != objects[:-1]
    assert images != [*objects[:-1], replace(objects[-1], version="other")]
    assert [images[row] for row in (0, 7, -1, np.int64(12))] == [objects[row] for row in (0, 7, -1, 12)]
    for part in (slice(5, 9), slice(None, None, -1), slice(3, 200, 7), slice(-4, None), slice(9, 3)):
        assert list(images[part]) == objects[part]
    assert images[10:20][3:][0] == objects[13]
    assert objects[3] in images
    assert images.index(objects[3]) == 3
    with pytest.raises(IndexError, match="image 300 of 300"):
        images[300]


def test_columns_are_those_of_the_objects() -> None:
    objects = make_images()
    some = Images.of(objects)[40:250]
    assert some.labels.tolist() == [image.label for image in objects[40:250]]
    assert [bytes(row).hex() for row in some.content_ids] == [image.content_id for image in objects[40:250]]


def test_no_images_are_a_sequence_too() -> None:
    none = Images.of([])
    assert len(none) == 0
    assert list(none) == []
    assert none.content_ids.shape == (0, 32)
    assert Manifest(("a", "b"), []).num_leaked == 0
    assert Manifest(("a", "b"), []).split("val") == []


def test_splits_are_found_also_where_they_lie_scattered() -> None:
    objects = [image for pair in zip(make_images()[:100], make_images()[200:], strict=True) for image in pair]
    manifest = make_manifest_of(objects)
    for split in ("train", "val", "test"):
        assert manifest.split(split) == [image for image in objects if image.split == split]  # type: ignore[arg-type]


def test_a_part_travels_to_another_process_without_the_rest() -> None:
    images = Images.of(make_images(30_000))
    few = pickle.dumps(images[100:110])
    assert pickle.loads(few) == images[100:110]
    assert len(few) < 5000
    manifest = make_manifest_of(make_images())
    manifest.split("train")
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_the_fingerprint_depends_on_contents_classes_and_splits_alone() -> None:
    objects = make_images()
    fingerprint = make_manifest_of(objects).fingerprint
    moved = [replace(image, uri=f"/elsewhere/{image.uri}", version="", shard="x", row=1) for image in objects[::-1]]
    assert make_manifest_of(moved).fingerprint == fingerprint
    for change in ({"content_id": sha("other")}, {"label": 0}, {"split": "val"}):
        assert (
            make_manifest_of([*objects[:100], replace(objects[100], **change), *objects[101:]]).fingerprint
            != fingerprint
        )  # type: ignore[arg-type]
    assert make_manifest_of(objects[:-1]).fingerprint != fingerprint
    assert Manifest(("a", "b", "x"), objects).fingerprint != fingerprint


def test_what_is_saved_comes_back_equal_with_its_notes_and_fingerprint(tmp_path: Path) -> None:
    manifest = make_manifest_of([replace(image, shard=f"shard{image.label}", row=5) for image in make_images()])
    write_format(str(tmp_path), save_manifest(manifest, str(tmp_path)))
    loaded = load_manifest(str(tmp_path))
    assert loaded == manifest
    assert loaded.notes == ("a note",)
    metadata = pq.read_schema(tmp_path / "manifest.parquet").metadata
    assert metadata[b"fingerprint"].decode() == manifest.fingerprint == loaded.fingerprint


def test_places_in_shards_are_joined_by_contents() -> None:
    objects = make_images()
    index = pa.table(
        {"content_id": [sha("7"), sha("299"), sha("unknown")], "shard": ["s0", "s1", "s2"], "row": [4, 0, 9]}
    )
    placed = make_manifest_of(objects).with_shards(index)
    expected = {7: ("s0", 4), 299: ("s1", 0)}
    for number, (before, after) in enumerate(zip(objects, placed.images, strict=True)):
        shard, row = expected.get(number, ("", -1))
        assert after == replace(before, shard=shard, row=row)


def test_images_of_val_and_test_that_are_in_train_are_counted() -> None:
    objects = make_images()
    train = next(image for image in objects if image.split == "train")
    copies = [replace(train, split="val"), replace(train, split="test", uri="x"), replace(train, uri="y")]
    assert make_manifest_of(objects).num_leaked == 0
    assert make_manifest_of(objects + copies).num_leaked == 2
