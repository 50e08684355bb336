"""Made-up images for the tests of prepared shards: bytes that tell their image, so that a wrong row is seen.

with ImageShards(str(tmp_path / "shards"), str(tmp_path / "cache")).writer() as writer:
    add_images(writer, range(8))
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tlray import storage


@dataclass(frozen=True)
class Row:
    uri: str
    version: str
    content_id: str
    num_bytes: int
    width: int
    height: int
    status: str = "ok"


def image_bytes(number: int) -> bytes:
    """Between 400 and 899 bytes that follow from the number alone."""
    block = hashlib.sha256(f"image {number}".encode()).digest()
    return (block * 30)[: 400 + number * 37 % 500]


def row_of(number: int, data: bytes | None = None, **fields: Any) -> Row:
    data = image_bytes(number) if data is None else data
    known = {
        "uri": f"s3://photos/class{number % 3}/{number:06}.jpg",
        "version": f"v{number}",
        "content_id": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "width": 40 + number,
        "height": 30 + number,
    }
    return Row(**{**known, **fields})


def add_images(writer: Any, numbers: Iterable[int]) -> None:
    for number in numbers:
        writer.add(row_of(number), image_bytes(number))


def number_of(uri: str) -> int:
    return int(uri.rpartition("/")[2].removesuffix(".jpg"))


def assert_all_read(store: Any, numbers: Iterable[int]) -> None:
    """The index lists exactly these images, each once, and each place that it names holds the right bytes."""
    table = store.index()
    found = [number_of(uri) for uri in table["uri"].to_pylist()]
    assert sorted(found) == sorted(numbers)
    for number, shard, row in zip(found, table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
        assert store.read(shard, row) == image_bytes(number), number


def keep_bucket_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tlray.storage find s3://… in a local folder: remote to all that asks, and no server needed."""

    def local(uri: str) -> str:
        return str(folder / uri.removeprefix("s3://")) if uri.startswith("s3://") else uri

    def redirected(real: Any) -> Any:
        return lambda uri, *rest: real(local(uri), *rest)

    def list_files(uri: str, real: Any = storage.list_files) -> Iterator[storage.FileInfo]:
        for file in real(local(uri)):
            yield replace(file, uri=file.uri.replace(f"{folder}/", "s3://"))

    monkeypatch.setattr(storage, "list_files", list_files)
    for name in ("read_bytes", "write_bytes", "delete", "download"):
        monkeypatch.setattr(storage, name, redirected(getattr(storage, name)))
