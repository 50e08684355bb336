"""What is kept of an image beside its bytes, as Arrow columns."""

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

GOOD = "ok"  # the status of an image that can be used; others say why not

ROW_FIELDS = [
    ("uri", pa.string()),
    ("version", pa.string()),  # of the original, when it was read
    ("content_id", pa.string()),  # sha256 of the original, hexadecimal
    ("num_bytes", pa.int64()),  # of the original
    ("width", pa.int32()),  # pixels of the original, as shown
    ("height", pa.int32()),
    ("status", pa.string()),
]
ROW_SCHEMA = pa.schema(ROW_FIELDS)


class ImageRow(Protocol):
    """An image that was looked at. All is about the original, also where a smaller copy of it is kept."""

    @property
    def uri(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def content_id(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def status(self) -> str: ...


def columns_of(rows: Sequence[ImageRow]) -> list[pa.Array]:
    """One array for each of ROW_FIELDS; rows are those of one shard, so they are few."""
    return [pa.array((getattr(row, name) for row in rows), kind, size=len(rows)) for name, kind in ROW_FIELDS]
