"""Which images a store holds, and in which rows of which shards: what the entries of all its shards say together.

index = ShardIndex(folder)
table = index.load()                                    # one listing, then the entries that are new, many at once
"""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.data.shards.row import ROW_FIELDS, ROW_SCHEMA
from tlray.data.shards.shard import ENTRY_SUFFIX, NAME
from tlray.storage import parquet
from tlray.storage.stores.folder import ShardFolder, for_each, list_or_none, name_of, read_or_none

# The names of shards are long and few: a dictionary holds each once.
INDEX_SCHEMA = pa.schema([*ROW_FIELDS, ("shard", pa.dictionary(pa.int32(), pa.string())), ("row", pa.int32())])


class ShardIndex:
    """The index of one store as this process knows it. Threads may share it."""

    def __init__(self, folder: ShardFolder) -> None:
        self._folder = folder
        self._known: dict[str, pa.Table] = {}  # by name of the shard; an entry never changes
        self._lock = threading.Lock()

    def load(self) -> pa.Table:
        """INDEX_SCHEMA, sorted by shard and row. An image that two writers kept is there once, where it comes first.

        What lies in the folder and is no entry is ignored.
        """
        listed = {name_of(file.uri).removesuffix(ENTRY_SUFFIX): file.uri for file in list_or_none(self._folder.index)}
        names = sorted(name for name, uri in listed.items() if NAME.fullmatch(name) and uri.endswith(ENTRY_SUFFIX))
        with self._lock:
            known = self._known
        new = [name for name in names if name not in known]
        tables = for_each(lambda name: _read(listed[name]), new, remote=storage.is_remote(self._folder.uri))
        known = known | {name: table for name, table in zip(new, tables, strict=True) if table is not None}
        known = {name: known[name] for name in names if name in known}
        with self._lock:
            self._known = known
        return _without_repeats(_joined(known))


def _read(uri: str) -> pa.Table | None:
    """The rows of one shard; None for an entry that is gone, or that no writer of this format wrote."""
    data = read_or_none(uri)
    try:
        table = None if data is None else parquet.read_table(data)
    except pa.ArrowInvalid:
        return None
    return table if table is not None and table.schema.equals(ROW_SCHEMA) else None


def _joined(tables: dict[str, pa.Table]) -> pa.Table:
    names = pa.array(list(tables), pa.string())
    num_rows = [len(table) for table in tables.values()]
    numbers = np.repeat(np.arange(len(tables), dtype=np.int32), num_rows)
    rows = np.concatenate([np.arange(0, dtype=np.int32), *(np.arange(count, dtype=np.int32) for count in num_rows)])
    empty = ROW_SCHEMA.empty_table()
    table = pa.concat_tables([empty, *(table.replace_schema_metadata() for table in tables.values())])
    shards = pa.DictionaryArray.from_arrays(pa.array(numbers), names)
    return pa.table([*table.columns, shards, pa.array(rows)], schema=INDEX_SCHEMA)


def _without_repeats(table: pa.Table) -> pa.Table:
    """Each (uri, version) once."""
    if pc.count_distinct(table["uri"]).as_py() == len(table):
        return table
    keys = table.select(["uri", "version"]).append_column("place", pa.array(np.arange(len(table))))
    first = keys.group_by(["uri", "version"], use_threads=False).aggregate([("place", "min")])
    return table.take(np.sort(first["place_min"].to_numpy()))
