"""The names of a location's images, written to a Parquet file as they arrive: no list of them is ever in memory.

listing = write_listing(field, source, path)
for entry in listing: ...            # as often as is needed, in the source's order
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.data.sources.entry import Entry, Source
from tlray.storage import parquet

AT_ONCE = 8192  # rows in memory
NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("class_name", NAMES),
        ("split", NAMES),
        ("num_bytes", pa.int64()),
        ("version", pa.string()),
        ("reason", NAMES),
    ]
)


@dataclass(frozen=True)
class Listing:
    """What one source names, on disk; iterating reads it."""

    field: str
    path: Path
    num_entries: int
    classes: dict[str, str]  # class -> the first URI that has it
    splits: Counter[str]  # how many entries the source itself puts where; "" where it does not say

    def __iter__(self) -> Iterator[Entry]:
        with parquet.open_file(self.path) as file:
            for batch in parquet.batches(file, AT_ONCE):
                columns = (batch.column(name).to_pylist() for name in SCHEMA.names)
                yield from (Entry(self.field, *values) for values in zip(*columns, strict=True))


def write_listing(field: str, source: Source, path: Path) -> Listing:
    """Go through the source's entries once. What is bad already counts for no class."""
    classes: dict[str, str] = {}
    splits: Counter[str] = Counter()
    entries, num_entries = source.entries(), 0
    with pq.ParquetWriter(path, SCHEMA, use_dictionary=["class_name", "split", "reason"]) as writer:
        while some := list(islice(entries, AT_ONCE)):
            for entry in some:
                if entry.class_name:
                    classes.setdefault(entry.class_name, entry.uri)
            splits.update(entry.split for entry in some if not entry.reason)
            num_entries += len(some)
            columns = [
                pa.array([getattr(entry, name) for entry in some], SCHEMA.field(name).type) for name in SCHEMA.names
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    return Listing(field, path, num_entries, classes, splits)
