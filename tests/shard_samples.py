"""Made-up images for the tests of prepared shards: bytes that tell their image, so that a wrong row is seen.

with ImageShards(str(tmp_path / "shards"), str(tmp_path / "cache")).writer() as writer:
    add_images(writer, range(8))
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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
