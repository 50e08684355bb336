"""Copies of a remote store's shards on a node's disk: downloaded once, however many processes ask at the same time.

    cache = LocalCache("~/.cache/tlray/activations", max_bytes=50 * 10**9)
    with cache.open("s3://bucket/activations/ab…/shards/4be1….safetensors", shard) as file:
        …                                                  # a verified file that nobody evicts while it is open

Whoever has a copy open, or mapped, holds a shared lock (flock) on it; whoever evicts it takes an exclusive one. The
system lets go of the locks of a process that dies.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from tlray import storage
from tlray.activations.errors import ActivationError
from tlray.activations.index import Shard
from tlray.activations.shard import MAPS, ShardMismatch, is_sound

NUM_LOCKS = 64  # downloads of different shards seldom wait for each other
PART = ".part"  # an unfinished download, named with the bytes that it will have


class LocalCache:
    """A folder of copies, shared by all processes of a node and by all stores."""

    def __init__(self, folder: str, max_bytes: int | None) -> None:
        self._folder = Path(folder).expanduser()
        self._max_bytes = max_bytes

    def path(self, uri: str) -> Path:
        """Where the copy of `…/<digest>/shards/<file>` lies, once it is there."""
        digest, _, name = uri.split("/")[-3:]
        return self._folder / digest / name

    def open(self, uri: str, shard: Shard) -> BufferedReader:
        """The sound copy, locked against eviction for as long as it, or a map of it, is open.

        ShardMismatch when what the store holds is damaged itself, NotFoundError when it holds nothing.
        """
        path = self.path(uri)
        try:
            while True:
                file = _open_shared(path)
                if file is not None:
                    if is_sound(file, shard.bytes, shard.sha256):
                        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))  # used now
                        return file
                    file.close()
                self._fetch(uri, path, shard)
        except OSError as error:
            raise ActivationError(f"activations.cache {self._folder}: {error.strerror or error}") from None

    def _fetch(self, uri: str, path: Path, shard: Shard) -> None:
        """Download, verify, and only then give it its name; others who want the same file wait and then find it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(_lock_of(path)):
            file = _open_shared(path)
            if file is not None:  # somebody was faster, or it is damaged
                with file:
                    if is_sound(file, shard.bytes, shard.sha256):
                        return
                path.unlink(missing_ok=True)
            part = path.with_name(f"{path.name}.{shard.bytes}{PART}")
            try:
                with self._locked("room"):
                    self._make_room(shard.bytes)
                    part.touch()  # from here on others count its bytes
                storage.download(uri, part)
                with part.open("rb") as downloaded:
                    if not is_sound(downloaded, shard.bytes, shard.sha256):
                        raise ShardMismatch("its checksum differs")
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        if self._max_bytes is None or self._evict(self._max_bytes - num_bytes):
            return
        MAPS.drop()  # what this process holds open but does not read just now
        if self._evict(self._max_bytes - num_bytes):
            return
        raise ActivationError(
            f"activations.cache_max_gb: {self._max_bytes / 1e9:g} GB do not hold another {num_bytes / 1e9:g} GB beside "
            f"the copies in {self._folder} that are in use; allow more, or run fewer trials at a time on a node"
        )

    def _evict(self, target: int) -> bool:
        """Remove what was not used for longest, and is not in use, until at most `target` bytes are left."""
        files = [(path, status) for path in self._folder.glob("*/*") if (status := _status(path)) is not None]
        total = sum(_final_size(path, status) for path, status in files)
        for path, status in sorted(files, key=lambda item: item[1].st_atime_ns):
            if total <= target:
                break
            if self._remove_unused(path):
                total -= _final_size(path, status)
        return total <= target

    def _remove_unused(self, path: Path) -> bool:
        lock = path
        if path.suffix == PART:  # of a download that goes on, or of one that was killed
            lock = self._lock_file(_lock_of(path.with_name(path.name.removesuffix(PART).rpartition(".")[0])))
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        except FileNotFoundError:  # somebody else removed it
            return True
        return True

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._lock_file(name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> Path:
        folder = self._folder / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / name
        file.touch()
        return file


def _open_shared(path: Path) -> BufferedReader | None:
    """The file with a shared lock; None when there is none, or it was removed before the lock was ours."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    return file


def _lock_of(path: Path) -> str:
    return f"{int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % NUM_LOCKS:02}"


def _status(path: Path) -> os.stat_result | None:
    """Of a copy or an unfinished one; None for other files and for what is gone by now."""
    if path.suffix not in (PART, ".safetensors"):
        return None
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _final_size(path: Path, status: os.stat_result) -> int:
    return int(path.name.split(".")[-2]) if path.suffix == PART else status.st_size
