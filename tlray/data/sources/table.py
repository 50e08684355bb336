"""Manifests in CSV or Parquet: one row an image, `uri,label[,split]`, in as many buckets and folders as there are.

Relative URIs are relative to the folder of the file that they stand in. Labels are strings or whole numbers.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources.class_labels import NO_LABEL, UNLABELLED, class_names, named, unlabelled
from tlray.data.sources.columns import as_text, check_column
from tlray.data.sources.csv_file import Read, open_csv
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import class_of, container_files, is_excluded, named_errors, split_of
from tlray.data.sources.layout import file_splits
from tlray.data.sources.parquet_file import open_whole
from tlray.errors import DataError, StorageError
from tlray.storage import parquet
from tlray.storage.locations import CONTAINERS, Location

CSV, PARQUET = CONTAINERS["csv"], CONTAINERS["parquet"]
AT_ONCE = 8192  # rows made into objects together
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

    in_any_order = True

    def __init__(self, field: str, location: Location, data: DataConfig, endings: tuple[str, ...]) -> None:
        self._field, self._location, self._data, self._endings = field, location, data, endings
        self.remarks = Remarks()
        self.description = f"a manifest in {'CSV' if endings == CSV else 'Parquet'}, one row an image"

    def entries(self) -> Iterator[Entry]:
        # Rows may stand in any order, and copies far apart: all are needed before the first, as columns.
        table = pa.Table.from_batches(self._batches(), schema=SCHEMA).unify_dictionaries().combine_chunks()
        if table.num_rows == 0:
            raise DataError(f"{self._field}: {self._location.uri} names no images")
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
        self.remarks.clear()
        files = container_files(self._field, self._location, self._endings, self._data, self.remarks)
        uris = [uri for uri, _ in files]
        splits = file_splits(self._field, self._location.uri, uris)
        for uri in uris:
            num_before = 0
            for batch in self._columns(uri):
                rows = list(self._rows(uri, splits.get(uri, ""), num_before, batch))
                num_before += batch.num_rows
                columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
                yield pa.record_batch(
                    [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
                )

    def _columns(self, uri: str) -> Iterator[pa.RecordBatch]:
        """Batches of a file's columns uri, label and, where there is one, split: as strings, with nulls.

        Rows of ids that stand for no label have the label null, and `unlabelled` says so.
        """
        names = self._data.columns
        with _open(self._field, uri, self._endings) as table:
            wanted = {"uri": names.uri, "label": names.label}
            if names.split is not None or "split" in table.columns:
                wanted["split"] = names.split or "split"
            for role, name in wanted.items():
                check_column(self._field, uri, role, name, table.columns, table.schema)
            classes = None if table.schema is None else class_names(table.schema, names.label)
            for batch in table.read(list(wanted.values())):
                texts = [as_text(self._field, uri, name, batch.column(name)) for name in wanted.values()]
                kind = batch.schema.field(names.label).type
                labels = texts[1].to_pylist()
                none = pa.array(unlabelled(kind, labels), pa.bool_())
                if classes is not None:
                    texts[1] = self._named(uri, labels, classes)
                yield pa.record_batch([*texts, none], names=[*wanted, "unlabelled"])

    def _named(self, uri: str, labels: list[str | None], classes: tuple[str, ...]) -> pa.Array:
        try:
            found = [label if label in (None, NO_LABEL) else named(label, classes) for label in labels]
        except ValueError as error:
            raise DataError(f"{self._field}: a row of {uri} {error}") from None
        return pa.array(found, pa.large_string())

    def _rows(
        self, file: str, split_of_file: str, num_before: int, batch: pa.RecordBatch
    ) -> Iterator[tuple[str, str, str, str, int]]:
        """(uri, class, split, file, row) of each row that has a label and that data.exclude does not leave out."""
        splits = batch.column("split").to_pylist() if "split" in batch.schema.names else None
        names = ("uri", "label", "unlabelled")
        rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        for index, (name, label, has_none) in enumerate(rows):
            row = num_before + index + 1
            where = f"row {row} of {file}"
            if not name or not label:
                raise DataError(f"{self._field}: {where} has no {'label' if name else 'URI'}")
            for what, value in (("URI", name), ("label", label)):
                if "\n" in value or "\0" in value:
                    raise DataError(
                        f"{self._field}: {where} has a {what} that goes over two lines or holds a NUL: "
                        f"{value[:80]!r}; is a quotation mark missing?"
                    )
            split = split_of_file if splits is None else split_of(self._field, where, splits[index] or "")
            if has_none:
                self.remarks.add(UNLABELLED, where)
            elif not is_excluded(name, self._data):
                yield self._absolute(file, where, name), class_of(self._field, where, label), split, file, row

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


@dataclass(frozen=True)
class _Table:
    """One open file."""

    columns: list[str]
    read: Read
    schema: pa.Schema | None = None  # of Parquet


@contextmanager
def _open(field: str, uri: str, endings: tuple[str, ...]) -> Iterator[_Table]:
    if endings == CSV:
        with named_errors(field, uri, "CSV"), open_csv(uri) as (names, read):
            yield _Table(names, read)
    else:
        with open_whole(field, uri) as file:
            yield _Table(file.schema_arrow.names, partial(parquet.batches, file, AT_ONCE), file.schema_arrow)
