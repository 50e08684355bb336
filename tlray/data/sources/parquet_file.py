"""A user's Parquet file, opened once it is known to be one whole file: its mark at both ends, and nothing in front.

Of two files joined with `cat`, Parquet readers see the last one's footer and, where they are alike, the first one's
rows: numbers of one file with the values of another, without an error.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from tlray import storage
from tlray.data.sources.files import named_errors
from tlray.data.sources.parquet_footer import end_of_rows
from tlray.storage import parquet

MARK = b"PAR1"
TAIL = 8  # bytes: the length of the footer, and the mark
AT_ONCE = 2**20
MAX_FOOTER_BYTES = 2**25  # that are looked through; some microseconds a column of a group of rows


@contextmanager
def open_whole(field: str, uri: str) -> Iterator[parquet.ParquetFile]:
    """DataError, naming `field` and the file, for what is damaged, also while its rows are read."""
    with named_errors(field, uri, "Parquet"), storage.open_file(uri) as stream:
        start = stream.read(len(MARK))
        with parquet.open_file(stream, verify_pages=True) as file:
            if start != MARK:
                raise pa.ArrowInvalid("it does not begin with Parquet's mark PAR1: copy or make it again")
            _refuse_joined(stream)
            yield file


def _refuse_joined(stream: BinaryIO) -> None:
    """The last rows end in front of the footer; where bytes lie between them, no other file may end and begin there."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(size - TAIL)
    length = int.from_bytes(stream.read(4), "little")
    if length > MAX_FOOTER_BYTES:
        return  # what is read of its rows says whether it is damaged
    footer = size - TAIL - length
    stream.seek(footer)
    try:
        end = max(len(MARK), end_of_rows(stream.read(length)))
    except ValueError as error:
        raise pa.ArrowInvalid(f"its footer is damaged ({error}): copy or make it again") from None
    if end > footer:
        raise pa.ArrowInvalid(f"its rows end at byte {end} and its footer begins at {footer}: copy or make it again")
    # A file in front is no longer than what lies between this one's rows, as it counts them, and its footer. Page
    # indexes and filters lie there too, so this is small in a whole file.
    stream.seek(0)
    before, left = b"", footer - end + len(MARK)
    while left > 0 and (data := stream.read(min(AT_ONCE, left))):
        if MARK + MARK in before + data:
            raise pa.ArrowInvalid("two Parquet files are joined in it, as with `cat`: keep them apart, in one folder")
        before, left = data[-2 * len(MARK) :], left - len(data)
    stream.seek(0, os.SEEK_SET)
