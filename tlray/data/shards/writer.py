"""Images, one after the other, into shards that become visible one by one, each whole.

    with store.writer() as writer:
        writer.add(row, data)                               # from any number of threads
    writer.names                                            # of the shards that were written

A shard is written by a thread while the next one fills. With buffers that grow by doubling, memory holds up to seven
times the bytes of a shard. What an error or a signal interrupts loses the shard that was being filled, and none of
those before it.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

from tlray import storage
from tlray.data.shards.row import GOOD, ImageRow
from tlray.data.shards.shard import DATA_SUFFIX, ENTRY_SUFFIX, ShardBuilder
from tlray.data.shards.smaller import bounded
from tlray.storage.stores.folder import ShardFolder

SHARD_BYTES = 32 * 10**6  # of images
SHARD_ROWS = 100_000  # for images of no bytes, which are those that cannot be used
AHEAD_PER_THREAD = 4  # images that are being made smaller, or wait to be


class ShardWriter:
    """Any number of writers, on any machines, may write to one store at the same time."""

    def __init__(self, folder: ShardFolder, *, max_side: int | None, shard_bytes: int, num_threads: int) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._max_side = max_side
        self._shard_bytes = shard_bytes
        self._builder = ShardBuilder()
        self._shrunk: deque[tuple[ImageRow, Future[bytes | memoryview]]] = deque()
        self._max_ahead = AHEAD_PER_THREAD * num_threads
        self._being_written: Future[None] | None = None
        self._lock = threading.Lock()
        self._shrinking = ThreadPoolExecutor(num_threads, thread_name_prefix="tlray-smaller")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="tlray-shards")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._shrinking.shutdown(cancel_futures=True)
            self._writing.shutdown(cancel_futures=True)

    def add(self, row: ImageRow, data: bytes | memoryview) -> None:
        """Keep an image, smaller where the writer is to make it so; of one that cannot be used, the row alone.

        It is visible when its shard is, and at the latest when the block ends. StorageError when a shard cannot be
        written, which may be one before.
        """
        with self._lock:
            if row.status != GOOD:
                self._keep(row, b"")
            elif self._max_side is None:
                self._keep(row, data)
            else:
                shrink = partial(bounded, data, (row.height, row.width), max_side=self._max_side)
                self._shrunk.append((row, self._shrinking.submit(shrink)))
                self._keep_shrunk(self._max_ahead)

    def _finish(self) -> None:
        with self._lock:
            self._keep_shrunk(0)
            if self._builder.rows:
                self._start_writing()
            self._wait_for_writing()

    def _keep_shrunk(self, max_left: int) -> None:
        while len(self._shrunk) > max_left:
            row, smaller = self._shrunk.popleft()
            self._keep(row, smaller.result())

    def _keep(self, row: ImageRow, data: bytes | memoryview) -> None:
        self._builder.add(row, data)
        if self._builder.num_bytes >= self._shard_bytes or len(self._builder.rows) >= SHARD_ROWS:
            self._start_writing()

    def _start_writing(self) -> None:
        self._wait_for_writing()
        self._being_written = self._writing.submit(self._write, self._builder)
        self._builder = ShardBuilder()

    def _wait_for_writing(self) -> None:
        if self._being_written is not None:
            self._being_written.result()
            self._being_written = None

    def _write(self, builder: ShardBuilder) -> None:
        shard = builder.finish()
        storage.write_bytes(self._folder.data(f"{shard.name}{DATA_SUFFIX}"), shard.data)
        storage.write_bytes(self._folder.entry(f"{shard.name}{ENTRY_SUFFIX}"), shard.entry)
        self.names.append(str(shard.name))
