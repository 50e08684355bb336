"""Manifests in CSV or Parquet: one row an image, `uri,label[,split]`, in as many buckets and folders as there are.

Relative URIs are relative to the folder of the file that they stand in. Labels are strings or whole numbers.
"""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from tlray import parquet, storage
from tlray.config import DataConfig
from tlray.data.sources.entry import Entry, Load
from tlray.data.sources.files import check_column, container_files, is_excluded, named_errors, split_of
from tlray.errors import DataError, StorageError

CSV = (".csv", ".csv.gz")
PARQUET = (".parquet",)
AT_ONCE = 8192  # rows made into objects together
Read = Callable[[list[str]], Iterator[pa.RecordBatch]]  # columns -> their rows
SCHEMA = pa.schema(
    [
        ("uri", pa.large_string()),
        ("class_name", pa.dictionary(pa.int32(), pa.string())),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("file", pa.dictionary(pa.int32(), pa.string())),  # where it stands, for messages
        ("row", pa.int32()),
    ]
)


class TableSource:
    """The rows of one file, or of all those below a location, sorted by URI. An image may be named once."""

    def __init__(self, field: str, location: str, data: DataConfig, endings: tuple[str, ...]) -> None:
        self._field, self._location, self._data, self._endings = field, location, data, endings
        self.description = f"a manifest in {'CSV' if endings == CSV else 'Parquet'}, one row an image"

    def entries(self) -> Iterator[Entry]:
        # Rows may stand in any order, and copies far apart: all are needed before the first, as columns.
        table = pa.Table.from_batches(self._batches(), schema=SCHEMA).unify_dictionaries().combine_chunks()
        if table.num_rows == 0:
            raise DataError(f"{self._field}: {self._location} names no images")
        order = pc.sort_indices(table["uri"])
        for start in range(0, len(order), AT_ONCE):
            # one row more than is used, so that a copy that starts the next piece is seen
            some = table.take(order[start : start + AT_ONCE + 1])
            self._refuse_copies(some)
            names = (some[name].to_pylist()[:AT_ONCE] for name in ("uri", "class_name", "split"))
            yield from (Entry(self._field, *fields) for fields in zip(*names, strict=True))

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for entry in entries:
            yield entry, partial(storage.read_bytes, entry.uri)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for uri, _ in container_files(self._field, self._location, self._endings, self._data):
            num_before = 0
            for batch in self._columns(uri):
                rows = list(self._rows(uri, num_before, batch))
                num_before += batch.num_rows
                columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
                yield pa.record_batch(
                    [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
                )

    def _columns(self, uri: str) -> Iterator[pa.RecordBatch]:
        """Batches of a file's columns uri, label and, where there is one, split: as strings, with nulls."""
        names = self._data.columns
        kind, open_table = ("CSV", _open_csv) if self._endings == CSV else ("Parquet", _open_parquet)
        with named_errors(self._field, uri, kind), open_table(uri) as (there, read):
            wanted = {"uri": names.uri, "label": names.label}
            if names.split is not None or "split" in there:
                wanted["split"] = names.split or "split"
            for role, name in wanted.items():
                check_column(self._field, uri, role, name, there)
            for batch in read(list(wanted.values())):
                texts = [as_text(self._field, uri, name, batch.column(name)) for name in wanted.values()]
                yield pa.record_batch(texts, names=list(wanted))

    def _rows(self, file: str, num_before: int, batch: pa.RecordBatch) -> Iterator[tuple[str, str, str, str, int]]:
        """(uri, class, split, file, row) of each row that data.exclude does not leave out."""
        splits = batch.column("split").to_pylist() if "split" in batch.schema.names else None
        labels = batch.column("label").to_pylist()
        for index, (name, label) in enumerate(zip(batch.column("uri").to_pylist(), labels, strict=True)):
            row = num_before + index + 1
            where = f"row {row} of {file}"
            if not name or not label:
                raise DataError(f"{self._field}: {where} has no {'label' if name else 'URI'}")
            split = "" if splits is None else split_of(self._field, where, splits[index] or "")
            if not is_excluded(name, self._data):
                yield self._absolute(file, where, name), label, split, file, row

    def _absolute(self, table_uri: str, where: str, name: str) -> str:
        """What a row's URI means, from any place."""
        if name.startswith(("s3://", "/")) or "://" in name:
            try:
                return storage.absolute(name)
            except StorageError as error:
                raise DataError(f"{self._field}: {where}: {error}") from None
        folder = table_uri.rpartition("/")[0]
        if not storage.is_remote(table_uri):
            return os.path.normpath(f"{folder}/{name}")
        bucket, _, prefix = folder.removeprefix("s3://").partition("/")
        key = posixpath.normpath(posixpath.join("/", prefix, name)).lstrip("/")
        return f"s3://{bucket}/{key}"

    def _refuse_copies(self, table: pa.Table) -> None:
        uris = table["uri"].combine_chunks()
        same = pc.equal(uris[1:], uris[:-1]).to_numpy(zero_copy_only=False)
        if same.any():
            row = int(np.flatnonzero(same)[0])
            places = ((table["file"][at].as_py(), table["row"][at].as_py()) for at in (row, row + 1))
            (file, number), (later, again) = sorted(places)
            raise DataError(
                f"{self._field}: row {again} of {later} names {uris[row]}, as row {number} of {file} does: remove one"
            )


def as_text(field: str, uri: str, name: str, column: pa.Array) -> pa.Array:
    """A column of strings, bytes or whole numbers as strings; DataError for another type."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (texts or pa.types.is_integer(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind)):
        raise DataError(f"{field}: {uri}: column {name!r} holds {kind}; expected strings or whole numbers")
    return column.cast(kind).cast(pa.large_string())


@contextmanager
def _open_csv(uri: str) -> Iterator[tuple[list[str], Read]]:
    """The names of a file's columns, and what reads some of them.

    From a file on this disk, also where it lies on S3: Arrow reads ahead in a thread of its own, which must not need
    Python (see tlray/parquet.py).
    """
    with storage.local_copy(uri) as path:
        with _csv_stream(path) as stream, pacsv.open_csv(stream) as reader:
            names = reader.schema.names
        yield names, partial(_csv_batches, path)


def _csv_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # as text: 007 stays 007, and no value is taken for a missing one
    convert = pacsv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    with _csv_stream(path) as stream, pacsv.open_csv(stream, convert_options=convert) as reader:
        yield from reader


def _csv_stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(path, compression="gzip" if path.name.lower().endswith(".gz") else None)


@contextmanager
def _open_parquet(uri: str) -> Iterator[tuple[list[str], Read]]:
    with storage.open_file(uri) as stream, parquet.open_file(stream) as file:
        yield file.schema_arrow.names, partial(parquet.batches, file, AT_ONCE)
