"""Every image of a listing looked at once: whole and decodable? Its contents' hash and its size. Threads, flat memory.

    for entry, found in inspect(source, listing, known={}, num_threads=8): ...

What an earlier inspection knows of a file in the same version is taken from there, and the file not read.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.data.decode import BadImageError, check, shape_problem
from tlray.data.scaled import scaling
from tlray.data.sources import Entry, Load, Source
from tlray.errors import StorageError

MIN_THREADS = 8  # most of the time is spent waiting where images come over a network
AHEAD_PER_THREAD = 16  # results kept until they are collected
AHEAD_BYTES = 128 * 2**20  # of files under way
UNKNOWN_BYTES = 2**20  # what a file counts whose size is not listed
OK = "ok"


@dataclass(frozen=True, slots=True)
class Inspected:
    """What is known of one file in one version, whatever its class and split."""

    uri: str
    version: str  # "" where nothing was listed: such a file is read again
    content_id: str = ""  # sha256, hexadecimal
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    status: str = OK  # or why it cannot be used


Known = Mapping[tuple[str, str], Inspected]  # by (uri, version)
Keep = Callable[[Inspected, bytes], None]


def inspect(
    source: Source, entries: Iterable[Entry], *, known: Known, num_threads: int, keep: Keep | None = None
) -> Iterator[tuple[Entry, Inspected]]:
    """What was found of each entry: first of those that need no reading, then of the others in order.

    `entries` is gone through twice. `keep` gets every usable image that was read, with its bytes, in order and from
    the calling thread. A server that gives no access ends it with its StorageError; a file that is gone is a bad one.
    """
    wanted = bytearray()  # one flag an entry
    for entry in entries:
        found = _without_reading(entry, known)
        wanted.append(found is None)
        if found is not None:
            yield entry, found
    if any(wanted):
        read = source.read(compress(entries, wanted))
        for entry, found, remark in _read_all(read, max(num_threads, MIN_THREADS), keep):
            if remark:
                source.remarks.add(remark, entry.uri)
            yield entry, found


def _without_reading(entry: Entry, known: Known) -> Inspected | None:
    if entry.reason:
        return Inspected(entry.uri, entry.version, status=entry.reason)
    found = known.get((entry.uri, entry.version)) if entry.version else None
    if found is not None and found.status == OK and (problem := shape_problem(found.height, found.width)):
        return replace(found, status=problem)  # earlier versions took it
    return found


def _read_all(
    loads: Iterator[tuple[Entry, Load]], num_threads: int, keep: Keep | None
) -> Iterator[tuple[Entry, Inspected, str]]:
    """The last of each: what a person should know of how it was decoded."""
    pending: deque[tuple[Entry, Future[tuple[Inspected, bytes, str]]]] = deque()
    num_bytes = 0

    def oldest() -> tuple[Entry, Inspected, str]:
        nonlocal num_bytes
        entry, future = pending.popleft()
        num_bytes -= _weight(entry)
        found, data, remark = future.result()
        if keep is not None and found.status == OK:
            keep(found, data)
        return entry, found, remark

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tlray-inspect")
    try:
        for entry, load in loads:
            pending.append((entry, pool.submit(_look, entry, load, with_data=keep is not None)))
            num_bytes += _weight(entry)
            while len(pending) > num_threads * AHEAD_PER_THREAD or (num_bytes > AHEAD_BYTES and len(pending) > 1):
                yield oldest()
        while pending:
            yield oldest()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _weight(entry: Entry) -> int:
    return entry.num_bytes if entry.num_bytes >= 0 else UNKNOWN_BYTES


def _look(entry: Entry, load: Load, *, with_data: bool) -> tuple[Inspected, bytes, str]:
    """Runs in a thread: read, check, hash."""
    try:
        data = load()
        height, width = check(data)
    except BadImageError as error:
        return Inspected(entry.uri, entry.version, status=error.reason), b"", ""
    except StorageError as error:
        about_the_file = isinstance(error, (storage.NotFoundError, storage.ChangedError))
        if storage.is_remote(entry.uri) and not about_the_file:
            raise
        reason = str(error).removeprefix(entry.uri).strip(": ")
        return Inspected(entry.uri, entry.version, status=reason), b"", ""
    content_id = hashlib.sha256(data).hexdigest()
    found = Inspected(entry.uri, entry.version, content_id, len(data), width, height)
    return found, data if with_data else b"", scaling(data)


class KnownTable(Known):
    """An earlier inspection as columns: uri, version, content_id (hexadecimal), num_bytes, width, height, status."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.select(list(Inspected.__dataclass_fields__)).combine_chunks()
        keys = np.fromiter((hash(key) for key in self), np.int64, table.num_rows)
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]

    def __getitem__(self, key: tuple[str, str]) -> Inspected:
        wanted = np.int64(hash(key))
        at = int(np.searchsorted(self._keys, wanted))
        while at < len(self._keys) and self._keys[at] == wanted:
            row = int(self._rows[at])
            if (self._table["uri"][row].as_py(), self._table["version"][row].as_py()) == key:
                return Inspected(*(self._table[name][row].as_py() for name in self._table.column_names))
            at += 1
        raise KeyError(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for batch in self._table.select(["uri", "version"]).to_batches(max_chunksize=8192):
            yield from zip(batch.column("uri").to_pylist(), batch.column("version").to_pylist(), strict=True)

    def __len__(self) -> int:
        return self._table.num_rows
