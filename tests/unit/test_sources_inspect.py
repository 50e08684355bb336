"""Inspection reads each file once, reads what is known not at all, and knows when something has come in between."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from tlray import storage
from tlray.config import DataConfig
from tlray.data.inspect import Inspected, KnownTable, inspect
from tlray.data.manifest import make_manifest
from tlray.data.sources import Entry, Load, open_source
from tlray.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(30):
            Image.new("RGB", (9 + index, 5), (index, 0, ord(label))).save(
                tmp_path / "images" / label / f"{index:02}.png"
            )
    return tmp_path / "images"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from now on."""
    names: list[str] = []
    read_bytes = storage.read_bytes

    def counted(uri: str, version: str | None = None) -> bytes:
        names.append(Path(uri).name)
        return read_bytes(uri, version)

    monkeypatch.setattr("tlray.storage.read_bytes", counted)
    return names


def inspected(folder: Path, **arguments: object) -> dict[str, Inspected]:
    data = DataConfig(train=str(folder))
    source = open_source("data.train", str(folder), data)
    defaults = {"known": {}, "num_threads": 2}
    found = inspect(source, list(source.entries()), **{**defaults, **arguments})  # type: ignore[arg-type]
    return {entry.uri: what for entry, what in found}


def as_table(found: dict[str, Inspected]) -> pa.Table:
    return pa.Table.from_pylist(
        [{n: getattr(what, n) for n in Inspected.__dataclass_fields__} for what in found.values()]
    )


def test_every_file_is_read_once_and_described(folder: Path, reads: list[str]) -> None:
    found = inspected(folder)
    assert len(reads) == 60
    for path in folder.rglob("*.png"):
        what, data = found[str(path)], path.read_bytes()
        with Image.open(path) as image:
            assert (what.width, what.height) == image.size
        assert (what.content_id, what.num_bytes, what.status) == (hashlib.sha256(data).hexdigest(), len(data), "ok")


@pytest.mark.parametrize("form", [dict, KnownTable])
def test_what_is_known_in_the_same_version_is_not_read_again(
    form: Callable[..., dict[tuple[str, str], Inspected]], folder: Path, reads: list[str]
) -> None:
    first = inspected(folder)
    table = as_table(first)
    known = KnownTable(table) if form is KnownTable else {(w.uri, w.version): w for w in first.values()}
    Image.new("RGB", (77, 5)).save(folder / "a" / "03.png")
    Image.new("RGB", (78, 5)).save(folder / "b" / "new.png")
    reads.clear()
    again = inspected(folder, known=known)
    assert sorted(reads) == ["03.png", "new.png"]
    assert again[str(folder / "a" / "03.png")].width == 77
    unchanged = first.keys() - {str(folder / "a" / "03.png")}
    assert {uri: again[uri] for uri in unchanged} == {uri: first[uri] for uri in unchanged}


def test_a_manifest_made_with_what_is_known_is_the_same_as_one_without(folder: Path, reads: list[str]) -> None:
    (folder / "a" / "copy.png").write_bytes((folder / "a" / "03.png").read_bytes())
    (folder / "a" / "page.jpg").write_text("<html>404</html>")
    data = DataConfig(train=str(folder), val_fraction=0.25, test_fraction=0.25)
    whole = make_manifest(data)
    half = {uri: what for index, (uri, what) in enumerate(inspected(folder).items()) if index % 2}
    reads.clear()
    assert make_manifest(data, known=as_table(half)) == whole
    assert len(reads) == 31
    assert [image.reason for image in whole.bad] == ["a web page, not an image"]


def test_a_key_that_a_table_lacks_is_not_known(folder: Path) -> None:
    found = inspected(folder)
    known = KnownTable(as_table(found))
    [one, *_] = found.values()
    assert known[one.uri, one.version] == one
    assert len(known) == 60
    assert (one.uri, "another version") not in known
    assert ("elsewhere", one.version) not in known


def test_the_bytes_of_usable_images_are_handed_on_in_order(folder: Path) -> None:
    (folder / "a" / "10.png").write_text("<html>404</html>")
    kept: list[tuple[str, bytes]] = []
    inspected(folder, keep=lambda what, data: kept.append((what.uri, data)), num_threads=4)
    paths = [path for path in sorted(folder.rglob("*.png")) if path != folder / "a" / "10.png"]
    assert kept == [(str(path), path.read_bytes()) for path in paths]


def test_a_file_that_vanishes_or_changes_after_the_listing_is_bad_with_a_reason(folder: Path) -> None:
    source = open_source("data.train", str(folder), DataConfig(train=str(folder)))
    entries = list(source.entries())
    os.unlink(folder / "a" / "00.png")
    Image.new("RGB", (99, 5)).save(folder / "a" / "01.png")
    found = {Path(entry.uri).name: what for entry, what in inspect(source, entries[:3], known={}, num_threads=1)}
    assert found["00.png"].status == "does not exist"
    assert "has changed since it was listed" in found["01.png"].status
    assert found["02.png"].status == "ok"


class EndlessSource:
    """Names that never end, and a count of how many were asked for."""

    description = "endless"
    asked = 0

    def entries(self) -> Iterator[Entry]:
        raise NotImplementedError

    def read(self, entries: object) -> Iterator[tuple[Entry, Load]]:
        while True:
            self.asked += 1
            yield Entry("data.train", f"s3://bucket/{self.asked}", "a", num_bytes=2**20), lambda: b"not an image"


def test_reading_stays_a_bounded_number_of_files_ahead() -> None:
    source = EndlessSource()
    results = inspect(source, [Entry("data.train", "s3://bucket/0", "a")], known={}, num_threads=2)
    for _ in range(50):
        next(results)
    assert source.asked < 50 + 8 * 16 + 2
    results.close()  # type: ignore[attr-defined]


def test_a_server_that_gives_no_access_ends_the_inspection() -> None:
    def refuse() -> bytes:
        raise StorageError("s3://bucket/0: access denied")

    class Refusing(EndlessSource):
        def read(self, entries: object) -> Iterator[tuple[Entry, Load]]:
            yield Entry("data.train", "s3://bucket/0", "a"), refuse

    with pytest.raises(StorageError, match="access denied"):
        list(inspect(Refusing(), [Entry("data.train", "s3://bucket/0", "a")], known={}, num_threads=1))
