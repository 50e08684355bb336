"""Images of a batch prediction: listed as a stream, each once, and cut into parts that survive additions."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tlray.data.inputs import stream_inputs
from tlray.errors import DataError
from tlray.inference import parts
from tlray.inference.parts import Listing, write_parts
from tlray.storage import FileInfo


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("FEWEST", 8), ("MOST", 32), ("ONE_IN", 8)):
        monkeypatch.setattr(parts, name, number)


def files(count: int) -> list[FileInfo]:
    return [FileInfo(f"s3://bucket/{number:06}.jpg", 100, 0.0, f"etag{number}") for number in range(count)]


def parts_of(some: list[FileInfo], tmp_path: Path) -> Listing:
    return write_parts(iter(some), tmp_path / "images.parquet")


def test_the_parts_hold_every_image_once_in_order_and_none_is_too_small_or_too_large(tmp_path: Path) -> None:
    listing = parts_of(files(1000), tmp_path)
    rows = [row for number in range(len(listing.names)) for row in listing.read(number).to_pylist()]
    expected = [{"uri": file.uri, "version": file.version, "error": None} for file in files(1000)]
    assert rows == expected
    assert all(8 <= size <= 32 for size in listing.sizes[:-1])
    assert (listing.num_images, len(set(listing.names))) == (1000, len(listing.names))


def test_an_image_that_is_added_removed_or_replaced_renames_the_parts_around_it_alone(tmp_path: Path) -> None:
    before = Counter(parts_of(files(1000), tmp_path).names)
    added, removed, replaced = files(1000), files(1000), files(1000)
    added.insert(500, FileInfo("s3://bucket/000499-b.jpg", 100, 0.0, "new"))
    del removed[500]
    replaced[500] = FileInfo(replaced[500].uri, 100, 0.0, "another")
    for changed in (added, removed, replaced):
        after = Counter(parts_of(changed, tmp_path).names)
        assert after != before
        assert (after - before).total() < before.total() / 5


def test_no_images_are_no_parts(tmp_path: Path) -> None:
    assert parts_of([], tmp_path).names == ()


def test_a_name_that_is_no_text_is_a_row_with_a_reason(tmp_path: Path) -> None:
    odd = os.fsdecode(b"/images/\xff.jpg")
    listing = parts_of([FileInfo(odd, 1, 0.0, "v")], tmp_path)
    assert listing.read(0).to_pylist() == [
        {"uri": "/images/\\udcff.jpg", "version": "v", "error": "its name is not valid UTF-8"}
    ]


def test_inputs_that_overlap_name_each_file_once_in_the_order_of_the_names(image_folder: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (images / ".cache").mkdir()
    (images / ".cache" / "x.jpg").write_bytes(b"")
    given = [str(images / "red"), str(images), str(images / "*" / "0[0-3].jpg"), str(images / "blue" / "05.jpg")]
    found = [info.uri for info in stream_inputs(given)]
    assert found == sorted(str(path) for path in image_folder_paths(images))
    assert all(info.version for info in stream_inputs([str(images / "red"), str(images / "*" / "0[0-3].jpg")]))


def image_folder_paths(images: Path) -> list[Path]:
    return [path for path in images.glob("*/*.jpg") if not path.parent.name.startswith(".")]


def test_an_input_that_names_nothing_ends_the_listing_at_once(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        next(stream_inputs([str(image_folder), str(tmp_path / "nowhere")]))


def test_objects_of_several_prefixes_are_listed_with_their_versions(s3: Any, image_folder: Path) -> None:
    from tlray import storage

    for path in sorted(image_folder.glob("red/*.jpg")):
        storage.write_bytes(f"{s3.uri}/new/{path.name}", path.read_bytes())
    found = list(stream_inputs([f"{s3.uri}/new", f"{s3.uri}/new/0*.jpg"]))
    assert [info.uri for info in found] == [f"{s3.uri}/new/{number:02}.jpg" for number in range(12)]
    assert all(info.version for info in found)
    with pytest.raises(DataError, match="does not exist"):
        list(stream_inputs([f"{s3.uri}/ne"]))
