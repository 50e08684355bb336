"""A manifest in CSV, plain or compressed with gzip: RFC 4180, commas, UTF-8. Values may hold newlines between quotes.

The end of a CSV cannot be proved. What can be is said: gzip's own end, a last line with too few values, and a quotation
mark that is never closed, which makes one value of all that follows it.
"""

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv as pacsv

from tlray import storage

BLOCK_BYTES = 4 * 2**20  # that Arrow parses at once; a row may be as long
AT_ONCE = 2**20
SAVE = "save it as UTF-8"
Read = Callable[[list[str]], Iterator[pa.RecordBatch]]  # columns -> their rows


@contextmanager
def open_csv(uri: str) -> Iterator[tuple[list[str], Read]]:
    """The names of a file's columns, and what reads some of them, as text. ArrowInvalid or OSError for what is damaged.

    From a file on this disk, also where it lies on S3: Arrow reads ahead in a thread of its own, which must not need
    Python (see tlray/storage/parquet.py).
    """
    with storage.local_copy(uri) as path:
        _check_encoding(path)
        _check_quotes(path)
        try:
            with _stream(path) as stream, _reader(stream) as reader:
                names = reader.schema.names
            yield names, partial(_batches, path)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"{error}{_hint(path, f'{error}')}") from None
        except UnicodeDecodeError:
            raise pa.ArrowInvalid(f"its first line is not text in UTF-8: {SAVE}") from None


def separator_hint(names: Sequence[str]) -> str:
    """Half a sentence where a header looks as if its values were separated by something else."""
    for name, mark in (("semicolons", ";"), ("tabs", "\t"), ("bars", "|")):
        if len(names) == 1 and mark in names[0]:
            return f"; its values seem to be separated by {name}, where commas are expected"
    return ""


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # as text: 007 stays 007, and no value is taken for a missing one
    convert = pacsv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    with _stream(path) as stream, _reader(stream, convert) as reader:
        yield from reader


def _reader(stream: pa.NativeFile, convert: pacsv.ConvertOptions | None = None) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(path, compression="gzip" if _is_gzip(path) else None)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_gzip(path) else path.open("rb")


def _check_encoding(path: Path) -> None:
    with _opened(path) as file:
        start = file.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise pa.ArrowInvalid(f"it is text in UTF-16: {SAVE}")


def _check_quotes(path: Path) -> None:
    """Where all are paired their number is even; only where it is odd is it worth a look at each value."""
    with _opened(path) as file:
        num_quotes = sum(data.count(b'"') for data in iter(partial(file.read, AT_ONCE), b""))
    if num_quotes % 2 == 0:
        return
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with _opened(path) as file:
            rows = csv.reader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""), strict=True)
            start = 1
            try:
                for _ in rows:
                    start = rows.line_num + 1
            except csv.Error as error:
                raise pa.ArrowInvalid(
                    f"a quotation mark is not closed, or stands inside a value, in the row that begins in line {start} "
                    f"({error})"
                ) from None
    finally:
        csv.field_size_limit(limit)


def _hint(path: Path, error: str) -> str:
    """Half a sentence: a line has too few values and the last one has no end, or the file is in another encoding."""
    if "invalid UTF8" in error:
        return f": {SAVE}"
    if "columns, got" not in error or _is_gzip(path):
        return ""
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return "" if file.read(1) in b"\r\n" else "; its last line has no newline at its end: was the file cut?"
