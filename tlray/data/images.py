"""Many images as columns: a sequence of `Image` objects that are made when they are asked for.

    images = Images.of([Image(...), ...])
    images[3].uri, len(images), images[:100], [image.label for image in images]

A million images take some 250 MB as columns and 1 GB as objects. Columns are pyarrow's; a slice shares their memory.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("test", "train", "val")  # a split's code is its place here: sorted by code, by name too
ID_BYTES = 32  # of a sha256
AT_ONCE = 8192  # rows made into objects together

SCHEMA = pa.schema(
    [
        ("uri", pa.large_string()),
        ("label", pa.int32()),
        ("split", pa.int8()),
        ("content_id", pa.binary(ID_BYTES)),
        ("num_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("version", pa.large_string()),
        ("shard", pa.large_string()),
        ("row", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be used."""

    uri: str  # of a member of a container: FILE.tar#OFFSET+SIZE, FILE.parquet#ROW
    label: int  # index into the manifest's classes
    split: Split
    content_id: str  # sha256 of the file, hexadecimal
    num_bytes: int
    width: int  # pixels, as shown: after the EXIF orientation
    height: int
    version: str = ""  # of the file, or of the container, when it was listed; "" where nothing was listed
    shard: str = ""  # where its bytes lie among prepared shards; "": read `uri`
    row: int = -1  # in that shard


@dataclass(frozen=True, slots=True)
class BadImage:
    uri: str
    reason: str


class Images(Sequence[Image]):
    """Images in `table`, whose columns are those of SCHEMA. Equal to any sequence of equal images."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, table: pa.Table) -> None:
        assert table.schema.equals(SCHEMA), table.schema
        self.table = table.combine_chunks()

    @classmethod
    def of(cls, images: Iterable[Image]) -> "Images":
        remaining, batches = iter(images), []
        while some := list(islice(remaining, AT_ONCE)):
            batches.append(_batch(some))
        return cls(pa.Table.from_batches(batches, schema=SCHEMA))

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32"""
        return self.table["label"].to_numpy()

    @property
    def splits(self) -> np.ndarray:
        """(N,) int8, codes that index SPLITS"""
        return self.table["split"].to_numpy()

    @property
    def content_ids(self) -> np.ndarray:
        """(N, 32) uint8"""
        return id_bytes(self.table["content_id"])

    def of_split(self, name: str) -> "Images":
        """The images of one split, in order; none for a name that is no split's."""
        if name not in SPLITS:
            return self[:0]
        rows = np.flatnonzero(self.splits == SPLITS.index(name))
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            return self[int(rows[0]) : int(rows[-1]) + 1]
        return Images(self.table.take(rows))

    def at(self, rows: np.ndarray) -> list[Image]:
        """Some images by their rows; ten times faster than one by one."""
        return list(_objects(self.table.take(rows)))

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Images": ...
    def __getitem__(self, index: int | slice) -> "Image | Images":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Images(self.table.slice(start, max(0, stop - start)))
            return Images(self.table.take(np.arange(start, stop, step)))
        row = operator.index(index)
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        values = {name: self.table[name][row].as_py() for name in SCHEMA.names}
        return Image(**{**values, "split": SPLITS[values["split"]], "content_id": values["content_id"].hex()})

    def __iter__(self) -> Iterator[Image]:
        for start in range(0, len(self), AT_ONCE):
            yield from _objects(self.table.slice(start, AT_ONCE))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Images):
            return bool(self.table.equals(other.table))
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Images({len(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """One buffer, which Ray hands on outside the pickle; Arrow's own columns would take more than a slice along."""
        return _from_ipc, (_to_ipc(self.table),)


def id_bytes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of content ids -> (N, 32) uint8."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    return flat[array.offset * ID_BYTES : (array.offset + len(array)) * ID_BYTES].reshape(-1, ID_BYTES)


def id_column(hexadecimal: Sequence[str]) -> pa.Array:
    """Content ids as hexadecimal strings -> a column of them."""
    data = bytes.fromhex("".join(hexadecimal))
    assert len(data) == ID_BYTES * len(hexadecimal), "a content id is a sha256"
    return pa.Array.from_buffers(pa.binary(ID_BYTES), len(hexadecimal), [None, pa.py_buffer(data)])


def give_back_memory() -> None:
    """Arrow keeps what it has freed; between whole columns of a million rows that is 100 MB for nothing."""
    pa.default_memory_pool().release_unused()


def _batch(images: Sequence[Image]) -> pa.RecordBatch:
    values: dict[str, Any] = {name: [getattr(image, name) for image in images] for name in SCHEMA.names}
    values["split"] = [SPLITS.index(image.split) for image in images]
    values["content_id"] = id_column(values["content_id"])
    return pa.record_batch([pa.array(values[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _objects(table: pa.Table) -> Iterator[Image]:
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    columns["split"] = [SPLITS[code] for code in columns["split"]]
    columns["content_id"] = [content.hex() for content in columns["content_id"]]
    return map(Image, *columns.values())


def _to_ipc(table: pa.Table) -> pa.Buffer:
    """Written once into memory of the right size: a sink that grows would need up to three times as much."""
    size = pa.MockOutputStream()
    _write_ipc(table, size)
    buffer = pa.allocate_buffer(size.size())
    with pa.FixedSizeBufferWriter(buffer) as sink:
        _write_ipc(table, sink)
    return buffer


def _write_ipc(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _from_ipc(data: pa.Buffer) -> Images:
    return Images(pa.ipc.open_stream(data).read_all())
