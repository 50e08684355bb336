"""Parquet files with the encoded images in them: a column of bytes, or Hugging Face's struct of bytes and path."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby

import pyarrow as pa

from tlray import storage
from tlray.config import DataConfig
from tlray.data.decode import BadImageError
from tlray.data.sources.class_labels import UNLABELLED, class_names, named, unlabelled
from tlray.data.sources.columns import as_text, check_column, holds_bytes, image_columns
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import check_unchanged, class_of, container_files, split_of
from tlray.data.sources.layout import file_splits
from tlray.data.sources.members import row_of
from tlray.data.sources.parquet_file import open_whole
from tlray.data.sources.table import PARQUET
from tlray.errors import DataError
from tlray.storage import parquet
from tlray.storage.locations import Location

LABELS_AT_ONCE = 8192
IMAGES_AT_ONCE = 16  # of 12 megapixels some 100 MB


class ParquetImagesSource:
    """Rows in the order of the files; FILE.parquet#ROW names one."""

    description = "Parquet files with the images in them"

    in_any_order = False  # a row is read with its whole group

    def __init__(self, field: str, location: Location, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data
        self.remarks = Remarks()

    def entries(self) -> Iterator[Entry]:
        """Labels alone are read."""
        found = False
        self.remarks.clear()
        files = list(container_files(self._field, self._location, PARQUET, self._data, self.remarks))
        splits = file_splits(self._field, self._location.uri, [uri for uri, _ in files])
        for uri, version in files:
            with open_whole(self._field, uri) as file:
                classes = class_names(file.schema_arrow, self._data.columns.label)
                for row, (label, has_none, split) in enumerate(self._labels(uri, file)):
                    where = f"row {row + 1} of {uri}"
                    if not label:
                        raise DataError(f"{self._field}: {where} has no {self._data.columns.label}")
                    found = True
                    if has_none:
                        self.remarks.add(UNLABELLED, where)
                        continue
                    chosen = splits.get(uri, "") if split is None else split_of(self._field, where, split)
                    yield Entry(
                        self._field, f"{uri}#{row}", self._class(where, label, classes), chosen, version=version
                    )
        if not found:
            raise DataError(f"{self._field}: {self._location.uri} holds no rows")

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for (uri, version), members in groupby(entries, key=lambda entry: (_file_of(entry), entry.version)):
            check_unchanged(uri, version)
            with open_whole(self._field, uri) as file:
                yield from _read_rows(file, self._data.columns.image, members)

    def _class(self, where: str, label: str, classes: tuple[str, ...] | None) -> str:
        try:
            name = named(label, classes)
        except ValueError as error:
            raise DataError(f"{self._field}: {where} {error}") from None
        return class_of(self._field, where, name)

    def _labels(self, uri: str, file: parquet.ParquetFile) -> Iterator[tuple[str | None, bool, str | None]]:
        """(label, whether it stands for none, split) of each row; the split is None where no column says."""
        names, schema = self._data.columns, file.schema_arrow
        split = names.split or ("split" if "split" in schema.names else None)
        for role, name in (("image", names.image), ("label", names.label), ("split", split)):
            if name is not None:
                check_column(self._field, uri, role, name, schema.names, schema)
        kind = schema.field(names.image).type
        if not holds_bytes(kind):
            others = "".join(f"; data.columns.image={other} does" for other in image_columns(schema)[:1])
            raise DataError(
                f"{self._field}: {uri}: column {names.image!r} holds {kind}; expected the bytes of images{others}"
            )
        columns = [names.label] if split is None else [names.label, split]
        label_kind = schema.field(names.label).type
        for batch in parquet.batches(file, LABELS_AT_ONCE, columns):
            texts = [as_text(self._field, uri, name, batch.column(name)).to_pylist() for name in columns]
            splits = [None] * batch.num_rows if split is None else [value or "" for value in texts[1]]
            yield from zip(texts[0], unlabelled(label_kind, texts[0]), splits, strict=True)


def read_row(uri: str, row: int, column: str, version: str = "") -> bytes:
    """The bytes of one row; reads its whole row group, so this is for a few of them."""
    check_unchanged(uri, version)
    entry = Entry("", f"{uri}#{row}", "")
    with storage.open_file(uri) as file:
        for _, load in _read_rows(parquet.open_file(file), column, iter([entry])):
            return load()
    raise storage.NotFoundError(f"{uri} has no row {row}")


def _read_rows(file: parquet.ParquetFile, column: str, members: Iterator[Entry]) -> Iterator[tuple[Entry, Load]]:
    """The rows that `members` name, which are in ascending order; row groups without one are not read."""
    entry = next(members, None)
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if entry is not None and _row_of(entry) < stop:
            at = start
            for batch in parquet.batches(file, IMAGES_AT_ONCE, [column], [group]):
                batch.validate()
                while entry is not None and _row_of(entry) < at + batch.num_rows:
                    yield entry, partial(_bytes_of, batch.column(0), _row_of(entry) - at)
                    entry = next(members, None)
                at += batch.num_rows
            if at != stop and entry is not None:
                raise pa.ArrowInvalid(f"rows {start + 1} to {stop} have {at - start} images: copy or make it again")
        start = stop


def _file_of(entry: Entry) -> str:
    return row_of(entry.uri)[0]


def _row_of(entry: Entry) -> int:
    return row_of(entry.uri)[1]


def _bytes_of(column: pa.Array, row: int) -> bytes:
    if not pa.types.is_struct(column.type):
        data, path = column[row], None
    else:
        data = column.field("bytes")[row] if column[row].is_valid else None
        path = column[row].get("path") if column[row].is_valid and "path" in column.type.names else None
    if data is None or not data.is_valid:
        where = path is not None and path.is_valid and bytes(path.as_buffer()).decode(errors="replace")
        raise BadImageError("its row holds no bytes" + (f", only the path {where!r}" if where else ""))
    return bytes(data.as_buffer())
