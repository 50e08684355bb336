"""Parquet files read by the thread that asks for them, never by threads of Arrow's own.

    table = parquet.read_table(data, ["label", "predicted"])
    with storage.open_file(uri) as stream, parquet.open_file(stream) as file:
        for batch in parquet.batches(file, 8192, ["uri"]): ...

What Arrow's threads read from is a Python object. When one lets go of it while Python ends, the process is aborted: all
of the work is done, and the exit code is 134 (https://github.com/apache/arrow/issues/34314).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow.parquet import ParquetFile as ParquetFile  # for signatures, too: elsewhere the linter refuses it


def open_file(source: Path | IO[bytes] | pa.NativeFile, *, verify_pages: bool = False) -> ParquetFile:
    """Its metadata is read; close it, or use it as a context. Rows come from the functions below, not its methods.

    `verify_pages`: those that have a checksum are compared with it, and refused as an OSError.
    """
    return ParquetFile(source, pre_buffer=False, page_checksum_verification=verify_pages)


def read(file: ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of the columns named; of all columns by default."""
    return file.read(columns, use_threads=False)


def read_row_group(file: ParquetFile, number: int) -> pa.Table:
    return file.read_row_group(number, use_threads=False)


def batches(
    file: ParquetFile, num_rows: int, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows in their order, at most `num_rows` a batch; of all row groups by default."""
    return file.iter_batches(num_rows, row_groups, columns, use_threads=False)


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file whose bytes are at hand. ArrowInvalid for what is no Parquet file."""
    with open_file(pa.BufferReader(data)) as file:
        return read(file, columns)
