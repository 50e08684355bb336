"""The columns of a table that a configuration names: are they there, of a fit type, and if not, which were meant?"""

from collections.abc import Sequence

import pyarrow as pa

from tlray.data.sources.class_labels import label_columns
from tlray.data.sources.csv_file import separator_hint
from tlray.errors import DataError, nearest

NUM_NAMED = 20  # columns of a wide table that a message lists


def check_column(
    field: str, uri: str, role: str, name: str, columns: Sequence[str], schema: pa.Schema | None = None
) -> None:
    """DataError that names the setting when a table has no such column, or several."""
    if name in columns:
        if list(columns).count(name) > 1:
            raise DataError(f"{field}: {uri} has several columns {name!r}: rename all but one")
        return
    images = [] if schema is None else image_columns(schema)
    if role in ("uri", "image") and images:
        raise DataError(
            f"{field}: {uri} has no column {name!r}; the bytes of its images are in {' and '.join(map(repr, images))}: "
            f"data.columns.image={images[0]}"
        )
    likely = label_columns(schema) if role == "label" and schema is not None else []
    near = "".join(f"; did you mean data.columns.{role}={other}?" for other in (likely or nearest(name, columns))[:1])
    shown = ", ".join(map(repr, columns[:NUM_NAMED])) + (", ..." if len(columns) > NUM_NAMED else "")
    raise DataError(
        f"{field}: {uri} has no column {name!r}; name another one with data.columns.{role} "
        f"(it has {shown or 'none'}){near or separator_hint(columns)}"
    )


def image_columns(schema: pa.Schema) -> list[str]:
    """Columns that could hold images as bytes."""
    return [field.name for field in schema if holds_bytes(field.type)]


def holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def as_text(field: str, uri: str, name: str, column: pa.Array) -> pa.Array:
    """A column of strings, bytes or whole numbers as strings; DataError for another type."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_struct(kind) and holds_bytes(kind):
        raise DataError(f"{field}: {uri}: column {name!r} holds images: name it with data.columns.image={name}")
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (texts or pa.types.is_integer(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind)):
        raise DataError(f"{field}: {uri}: column {name!r} holds {kind}; expected strings or whole numbers")
    found = column.cast(kind).cast(pa.large_string())
    found.validate(full=True)  # Parquet's strings are not checked when they are read
    return found
