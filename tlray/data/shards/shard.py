"""One shard as a file: built in memory, written as Arrow IPC, mapped and read without a copy.

    builder = ShardBuilder()
    builder.add(row, data)
    finished = builder.finish()                             # name, the file, its entry in the index
    with open(path, "rb") as file:
        mapped = map_shard(file)                            # of a file whose checksum was verified
    mapped.image(0)                                         # memoryview of the encoded image

The name of a shard says all that it takes to verify it: <sha256>-<bytes>. The file and its entry are named after it.
"""

import hashlib
import io
import mmap
import re
import secrets
from array import array
from dataclasses import dataclass, field
from io import BufferedReader

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray.data.shards.errors import ImageShardError
from tlray.data.shards.row import ROW_FIELDS, ROW_SCHEMA, ImageRow, columns_of
from tlray.storage.stores.maps import LARGEST_PAGE
from tlray.storage.stores.node_files import UnsoundFile

SHARD_SCHEMA = pa.schema([*ROW_FIELDS, ("image", pa.large_binary())])
NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})-(?P<num_bytes>[1-9][0-9]{0,15})")
DATA_SUFFIX, ENTRY_SUFFIX = ".arrow", ".parquet"


@dataclass(frozen=True)
class ShardName:
    """A name taken apart."""

    sha256: str  # of the file, hexadecimal
    num_bytes: int  # of the file

    def __str__(self) -> str:
        return f"{self.sha256}-{self.num_bytes}"

    @classmethod
    def parse(cls, name: str) -> "ShardName":
        """ImageShardError for what is no name of a shard, a path that leads elsewhere for one."""
        match = NAME.fullmatch(name)
        if match is None:
            raise ImageShardError(f"{name!r} is not the name of a prepared shard; start a new run")
        return cls(match["sha256"], int(match["num_bytes"]))


@dataclass(frozen=True)
class FinishedShard:
    name: ShardName
    data: bytes = field(repr=False)
    entry: bytes = field(repr=False)


class ShardBuilder:
    """A shard that grows. It holds its images once; `finish` holds them three times for a moment.

    Arrow's streams keep the memory of one shard for the next: growing a bytearray instead costs twice as much.
    """

    def __init__(self) -> None:
        self.rows: list[ImageRow] = []
        self._images = pa.BufferOutputStream()
        self._offsets = array("q", [0])

    @property
    def num_bytes(self) -> int:
        return int(self._images.tell())

    def add(self, row: ImageRow, data: bytes | memoryview) -> None:
        self.rows.append(row)
        self._images.write(data)
        self._offsets.append(self._images.tell())

    def finish(self) -> FinishedShard:
        """Ends the shard: nothing can be added to it any more."""
        columns = columns_of(self.rows)
        buffers = [None, pa.py_buffer(self._offsets), self._images.getvalue()]
        images = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self.rows), buffers)
        # of two writers of the same images, neither must take away the other's file
        schema = SHARD_SCHEMA.with_metadata({"written_by": secrets.token_hex(8)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([*columns, images], schema=schema))
        data = sink.getvalue().to_pybytes()
        name = ShardName(hashlib.sha256(data).hexdigest(), len(data))
        return FinishedShard(name, data, _entry(columns, name))


class MappedShard:
    """An open shard. It is closed, and what locks its file is let go, when nobody holds on to its images any more."""

    def __init__(self, mapped: mmap.mmap, offsets: np.ndarray, images: memoryview) -> None:
        self.num_resident = 0  # bytes, an upper estimate
        self._mapped = mapped
        self._offsets = offsets  # (rows + 1,) int64
        self._images = images

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def image(self, row: int) -> memoryview:
        """The encoded image, read-only; empty for one that cannot be used. IndexError past the end."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._images[self._offsets[row] : self._offsets[row + 1]]

    def touch(self, num_rows: int, row_bytes: int) -> int:
        before = self.num_resident
        self.num_resident = min(len(self._mapped), before + num_rows * (row_bytes + LARGEST_PAGE))
        return self.num_resident - before

    def release(self) -> None:
        if self.num_resident:
            self._mapped.madvise(mmap.MADV_DONTNEED)
            self.num_resident = 0


def map_shard(file: BufferedReader) -> MappedShard:
    """The map keeps the file open. UnsoundFile when it is a file of another format."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
    except pa.ArrowInvalid:
        raise UnsoundFile("it is not an Arrow file") from None
    if reader.num_record_batches != 1 or not reader.schema.equals(SHARD_SCHEMA):
        raise UnsoundFile("it is of another format")
    column = reader.get_batch(0).column("image")
    _, offsets, images = column.buffers()
    view = memoryview(b"") if images is None else memoryview(images).cast("B")
    return MappedShard(mapped, np.frombuffer(offsets, np.int64)[: len(column) + 1], view)


def _entry(columns: list[pa.Array], name: ShardName) -> bytes:
    """The Parquet file that makes the shard visible."""
    schema = ROW_SCHEMA.with_metadata({"sha256": name.sha256, "num_bytes": str(name.num_bytes)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()
