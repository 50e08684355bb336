"""One shard as a file: written as safetensors, mapped into memory and read without a copy.

    data = serialise([features])                          # features (N, 512) float16
    with open(path, "rb") as file:
        mapped = map_shard(file, shard)                   # ShardMismatch: not what the index says
    mapped.values[0][rows]                                # (len(rows), 512), a copy

MAPS bounds how many maps are open and how much of them stays resident.
"""

import json
import math
import mmap
import os
from collections.abc import Sequence
from io import BufferedReader

import numpy as np

from tlray.activations.index import Shard
from tlray.storage.stores.checksums import is_sound
from tlray.storage.stores.maps import LARGEST_PAGE, OpenMaps

MAX_OPEN_MAPS = 256  # of a process; each costs a file descriptor, of which there may be 1024
MAX_HEADER = 2**20
SAFETENSORS_NAMES = {"float16": "F16", "float32": "F32"}


class ShardMismatch(Exception):
    """The file is not what its index entry says; caught where it is known what to do about it."""


def serialise(values: Sequence[np.ndarray]) -> bytes:
    """values, each (N, ...) float16 or float32, as a safetensors file with the tensors "0", "1", …: one copy."""
    header, _ = header_of(values[0].dtype.name, [value.shape for value in values])
    little = [np.ascontiguousarray(value, value.dtype.newbyteorder("<")) for value in values]
    return b"".join([header, *(value.data.cast("B") for value in little)])


def header_of(dtype: str, shapes: Sequence[tuple[int, ...]]) -> tuple[bytes, list[int]]:
    """What stands in front of values of these shapes, with the batch, and where each of them ends behind it."""
    header, offset, ends = {}, 0, []
    itemsize, name = np.dtype(dtype).itemsize, SAFETENSORS_NAMES[dtype]
    for number, shape in enumerate(shapes):
        end = offset + math.prod(shape) * itemsize
        header[str(number)] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
        ends.append(end)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    return len(text).to_bytes(8, "little") + text, ends


class ShardMap:
    """An open shard. It is closed, and what locks its file is let go, when nobody holds on to its values any more."""

    def __init__(self, mapped: mmap.mmap, values: tuple[np.ndarray, ...]) -> None:
        self.values = values  # each (rows, ...), read-only
        self.num_resident = 0  # bytes, an upper estimate
        self._mapped = mapped

    def touch(self, num_rows: int, row_bytes: int) -> int:
        """Note that rows were read; returns how many bytes more may be resident now."""
        before = self.num_resident
        self.num_resident = min(len(self._mapped), before + num_rows * (row_bytes + LARGEST_PAGE * len(self.values)))
        return self.num_resident - before

    def release(self) -> None:
        """Give the pages back; they are mapped anew where they are read again."""
        if self.num_resident:
            self._mapped.madvise(mmap.MADV_DONTNEED)
            self.num_resident = 0


def map_shard(file: BufferedReader, shard: Shard) -> ShardMap:
    """Verify and map; the map keeps the file open. ShardMismatch says what is wrong."""
    if not is_sound(file, shard.bytes, shard.sha256):
        raise ShardMismatch("its checksum differs")
    offsets = _read_offsets(file.fileno(), shard)
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    dtype = np.dtype(shard.dtype).newbyteorder("<")
    values = tuple(
        np.frombuffer(mapped, dtype, shard.rows * math.prod(shape), offset).reshape(shard.rows, *shape)
        for offset, shape in zip(offsets, shard.shapes, strict=True)
    )
    return ShardMap(mapped, values)


def _read_offsets(descriptor: int, shard: Shard) -> list[int]:
    """Where each value starts in the file, by its header, which must agree with the entry and with the file's size."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > min(MAX_HEADER, shard.bytes - 8):
        raise ShardMismatch(f"its header would be {length} bytes long")
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        tensors = [header.pop(str(number)) for number in range(len(shard.shapes))]
    except (ValueError, KeyError, AttributeError):
        raise ShardMismatch("its header cannot be read") from None
    if header:
        raise ShardMismatch(f"it holds more than its {len(shard.shapes)} values")
    itemsize = np.dtype(shard.dtype).itemsize
    offsets, end = [], 0
    for tensor, shape in zip(tensors, shard.shapes, strict=True):
        start, end = end, end + shard.rows * math.prod(shape) * itemsize
        expected = {
            "dtype": SAFETENSORS_NAMES[shard.dtype],
            "shape": [shard.rows, *shape],
            "data_offsets": [start, end],
        }
        if tensor != expected:
            raise ShardMismatch(f"its header says {tensor} where the index says {expected}")
        offsets.append(8 + length + start)
    if 8 + length + end != shard.bytes:
        raise ShardMismatch("its header does not agree with its size")
    return offsets


MAPS: OpenMaps[ShardMap] = OpenMaps(MAX_OPEN_MAPS)
