"""Labels of Parquet files: names as they stand, and class ids with the names that Hugging Face's metadata has for them.

names = class_names(schema, "label")        # ("cat", "dog"); None where the metadata has none
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

METADATA = b"huggingface"  # of the schema: JSON, with the features of the data set
NO_LABEL = "-1"  # a class id that many data sets give to images without a class
UNLABELLED = "rows have the label -1, which stands for no label, and are skipped"


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The classes of a column of ids, in the order of the ids."""
    feature = _features(schema).get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def label_columns(schema: pa.Schema) -> list[str]:
    """Columns that Hugging Face's metadata says are classes."""
    return [name for name in schema.names if class_names(schema, name) is not None]


def unlabelled(kind: pa.DataType, labels: Sequence[str | None]) -> list[bool]:
    """Whether each label, as text, is the id that stands for none; in a column of strings it is a class."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return [label == NO_LABEL for label in labels] if pa.types.is_integer(kind) else [False] * len(labels)


def named(label: str, names: tuple[str, ...] | None) -> str:
    """The class that an id means; ValueError for an id that has no name."""
    if names is None or not label.lstrip("-").isdecimal():
        return label
    if not 0 <= int(label) < len(names):
        raise ValueError(f"has class id {label}, where the file's metadata names {len(names)} classes, from 0 on")
    return names[int(label)]


def _features(schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA)
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}
