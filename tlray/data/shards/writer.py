"""Images, one after the other, into shards that become visible one by one, each whole.

    with store.writer() as writer:
        writer.add(row, data)                               # from any number of threads
    writer.names                                            # of the shards that were written

What an error or a signal interrupts loses the shard that was being filled, and none of those before it.
"""

import threading
from types import TracebackType

from tlray import storage
from tlray.data.shards.row import GOOD, ImageRow
from tlray.data.shards.shard import DATA_SUFFIX, ENTRY_SUFFIX, ShardBuilder
from tlray.data.shards.smaller import bounded
from tlray.stores.folder import ShardFolder

SHARD_BYTES = 64 * 10**6  # of images
SHARD_ROWS = 100_000  # for images of no bytes, which are those that cannot be used
WRITES_AT_ONCE = 2  # each holds a shard twice; other threads go on adding


class ShardWriter:
    """Any number of writers, on any machines, may write to one store at the same time."""

    def __init__(self, folder: ShardFolder, *, max_side: int | None, shard_bytes: int) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._max_side = max_side
        self._shard_bytes = shard_bytes
        self._builder = ShardBuilder()
        self._lock = threading.Lock()
        self._writing = threading.BoundedSemaphore(WRITES_AT_ONCE)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._builder.rows:
            self._write(self._builder)

    def add(self, row: ImageRow, data: bytes | memoryview) -> None:
        """Keep an image, smaller where the writer is to make it so; of one that cannot be used, the row alone.

        The call that fills a shard returns when it is visible; StorageError when it cannot be written.
        """
        if row.status != GOOD:
            data = b""
        elif self._max_side is not None:
            data = bounded(data, (row.height, row.width), max_side=self._max_side)
        with self._lock:
            builder = self._builder
            builder.add(row, data)
            full = builder.num_bytes >= self._shard_bytes or len(builder.rows) >= SHARD_ROWS
            if full:
                self._builder = ShardBuilder()
        if full:
            self._write(builder)

    def _write(self, builder: ShardBuilder) -> None:
        with self._writing:
            shard = builder.finish()
            storage.write_bytes(self._folder.data(f"{shard.name}{DATA_SUFFIX}"), shard.data)
            storage.write_bytes(self._folder.entry(f"{shard.name}{ENTRY_SUFFIX}"), shard.entry)
        with self._lock:
            self.names.append(str(shard.name))
