"""Large files on a node's disk: made once, however many processes ask at the same time; limited in size together.

    copies = NodeFiles("~/.cache/tlray/activations", 50 * 10**9, purpose)
    with copies.open("9f3c…/4be1….safetensors", num_bytes, is_sound, make) as file:
        …                                                  # a sound file that nobody evicts while it is open

Whoever has a file open, or mapped, holds a shared lock (flock) on it; whoever evicts it takes an exclusive one. The
system lets go of the locks of a process that dies.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from tlray.errors import TlrayError

NUM_LOCKS = 64  # files in the making seldom wait for each other
PART = ".part"  # an unfinished file, named with the bytes that it will have


class UnsoundFile(Exception):
    """What was just made, from a download perhaps, is not what it should be; caught where it is known what to do."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a folder of files is for, as far as that matters here."""

    contents: str  # "the copies", in messages
    suffix: str  # of the files; others in the folder are no concern of ours
    folder_setting: str  # names of the settings that the user may change
    limit_setting: str
    error: type[TlrayError]
    let_go: Callable[[], None]  # close what this process holds open but does not read just now


class NodeFiles:
    """A folder of files, shared by all processes of a node. Each is named folder/name."""

    def __init__(self, folder: str, max_bytes: int | None, purpose: Purpose) -> None:
        self._folder = Path(folder).expanduser()
        self._max_bytes = max_bytes
        self._purpose = purpose

    def path(self, name: str) -> Path:
        """Where the file lies, once it is there."""
        return self._folder / name

    def open(
        self, name: str, num_bytes: int, is_sound: Callable[[BufferedReader], bool], make: Callable[[Path], None]
    ) -> BufferedReader:
        """The sound file, locked against eviction for as long as it, or a map of it, is open.

        make(path) writes its `num_bytes` where there is none yet; UnsoundFile when even that is not sound.
        """
        path = self.path(name)
        try:
            while True:
                file = _open_shared(path)
                if file is not None:
                    if is_sound(file):
                        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))  # used now
                        return file
                    file.close()
                self._make(path, num_bytes, is_sound, make)
        except OSError as error:
            reason = error.strerror or error
            raise self._purpose.error(f"{self._purpose.folder_setting} {self._folder}: {reason}") from None

    def _make(
        self, path: Path, num_bytes: int, is_sound: Callable[[BufferedReader], bool], make: Callable[[Path], None]
    ) -> None:
        """Make, verify, and only then give it its name; others who want the same file wait and then find it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(_lock_of(path)):
            file = _open_shared(path)
            if file is not None:  # somebody was faster, or it is damaged
                with file:
                    if is_sound(file):
                        return
                path.unlink(missing_ok=True)
            part = path.with_name(f"{path.name}.{num_bytes}{PART}")
            try:
                with self._locked("room"):
                    self._make_room(num_bytes)
                    part.touch()  # from here on others count its bytes
                make(part)
                with part.open("rb") as made:
                    if not is_sound(made):
                        raise UnsoundFile("its checksum differs")
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        if self._max_bytes is None or self._evict(self._max_bytes - num_bytes):
            return
        self._purpose.let_go()
        if self._evict(self._max_bytes - num_bytes):
            return
        raise self._purpose.error(
            f"{self._purpose.limit_setting}: {self._max_bytes / 1e9:g} GB do not hold another {num_bytes / 1e9:g} GB "
            f"beside {self._purpose.contents} in {self._folder} that are in use; allow more, or run fewer trials at a "
            "time on a node"
        )

    def _evict(self, target: int) -> bool:
        """Remove what was not used for longest, and is not in use, until at most `target` bytes are left."""
        files = [(path, status) for path in self._folder.glob("*/*") if (status := self._status(path)) is not None]
        total = sum(_final_size(path, status) for path, status in files)
        for path, status in sorted(files, key=lambda item: item[1].st_atime_ns):
            if total <= target:
                break
            if self._remove_unused(path):
                total -= _final_size(path, status)
        return total <= target

    def _status(self, path: Path) -> os.stat_result | None:
        """Of a file or an unfinished one; None for other files and for what is gone by now."""
        finished = _finished(path) if path.suffix == PART else path
        if finished.suffix != self._purpose.suffix:
            return None
        try:
            return path.stat()
        except FileNotFoundError:
            return None

    def _remove_unused(self, path: Path) -> bool:
        lock = path
        if path.suffix == PART:  # of somebody who is at work, or of one that was killed
            lock = self._lock_file(_lock_of(_finished(path)))
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


def _finished(part: Path) -> Path:
    """The name that an unfinished file will have."""
    return part.with_name(part.name.removesuffix(PART).rpartition(".")[0])


def _final_size(path: Path, status: os.stat_result) -> int:
    return int(path.name.split(".")[-2]) if path.suffix == PART else status.st_size
