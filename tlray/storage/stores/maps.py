"""Files mapped into memory: how many a process keeps open, and how much of them stays resident.

    maps = OpenMaps(max_maps=256)
    shard = maps.get(path, lambda: open_shard(path))        # whatever has the methods of Mapped
    maps.touch(path, num_rows=1, row_bytes=100_000)

Pages of a map that were read count as this process's memory until they are given back; the page cache keeps them, for
all processes of the node.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

RELEASE_BYTES = 64 * 2**20  # resident, over all maps, before the pages are given back
LARGEST_PAGE = 2 * 2**20  # what one access may make resident, where the system keeps the file in large pages


class Mapped(Protocol):
    """An open file that is mapped; it is closed when nobody holds on to what was read from it."""

    num_resident: int  # bytes, an upper estimate

    def touch(self, num_rows: int, row_bytes: int) -> int:
        """Note that rows were read; returns how many bytes more may be resident now."""
        ...

    def release(self) -> None:
        """Give the pages back; they are mapped anew where they are read again."""
        ...


AnyMapped = TypeVar("AnyMapped", bound=Mapped)


class OpenMaps(Generic[AnyMapped]):
    """The maps of a process, shared by its readers and threads: at most `max_maps`, those used last."""

    def __init__(self, max_maps: int) -> None:
        self.max_maps = max_maps
        self._maps: OrderedDict[str, AnyMapped] = OrderedDict()
        self._num_resident = 0
        self._lock = threading.Lock()

    def get(self, path: str, opened: Callable[[], AnyMapped]) -> AnyMapped:
        """The map of a file, opened where it is not; whoever uses it holds on to what is returned, so it stays open."""
        with self._lock:
            found = self._maps.get(path)
            if found is not None:
                self._maps.move_to_end(path)
                return found
        found = opened()  # without the lock: it may be a download, and several may go on at once
        with self._lock:
            self._maps.setdefault(path, found)
            while len(self._maps) > self.max_maps:
                _, oldest = self._maps.popitem(last=False)
                self._num_resident -= oldest.num_resident
        return found

    def holds(self, path: str) -> bool:
        with self._lock:
            return path in self._maps

    def touch(self, path: str, num_rows: int, row_bytes: int) -> None:
        """Note that rows of a map were read, and give all pages back when they have become too many."""
        with self._lock:
            if path in self._maps:
                self._num_resident += self._maps[path].touch(num_rows, row_bytes)
            if self._num_resident > RELEASE_BYTES:
                for one in self._maps.values():
                    one.release()
                self._num_resident = 0

    def drop(self, paths: Iterable[str] | None = None) -> None:
        """Let go of some maps, or of all; a reader that needs one again opens it again."""
        with self._lock:
            for path in list(self._maps) if paths is None else paths:
                dropped = self._maps.pop(path, None)
                if dropped is not None:
                    self._num_resident -= dropped.num_resident
