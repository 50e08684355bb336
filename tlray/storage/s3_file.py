"""An object on S3 as a file that can be read anywhere, for pyarrow to read Parquet from: open_file."""

import io
import os
from typing import BinaryIO, cast

from tlray.storage.s3_read import read_part, read_range

FIRST_BYTES = 2**16  # fetched when the file is opened, to learn its size
BUFFER_BYTES = 2**20  # of one request, where less is read at once


def open_file(uri: str) -> BinaryIO:
    """All reads are of the version that was there when the file was opened; ChangedError when it is replaced."""
    return cast(BinaryIO, io.BufferedReader(_S3File(uri), BUFFER_BYTES))


class _S3File(io.RawIOBase):
    def __init__(self, uri: str) -> None:
        first = read_part(uri, 0, FIRST_BYTES)
        self._uri = uri
        self._size = first.total
        self._version = first.version
        self._head = first.data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        start = self._position
        size = max(0, min(len(view), self._size - start))
        if start + size <= len(self._head):
            view[:size] = self._head[start : start + size]
        else:
            view[:size] = read_range(self._uri, start, size, self._version)
        self._position += size
        return size
