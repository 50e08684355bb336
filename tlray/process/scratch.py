"""Temporary folders: each is owned by a process, and goes with it or with the next command.

    with temporary_folder("export") as folder:
        ...                                          # StorageError, which names the folder, where it is full or gone
    sweep()                                          # those of processes that were killed

A folder holds a file that its process keeps locked. The kernel unlocks it when the process ends, however that ends, so
whoever can lock it knows that nobody uses the folder; process ids, clocks and containers do not matter.
"""

import errno
import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tlray.errors import StorageError

PREFIX = "tlray-"
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
NEARLY_FULL = 2**20  # bytes free, below which a library's own words for a failed write are not needed
REMEDY = "make room there, or set TMPDIR to a folder that has it"


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """An empty folder, removed at the end. StorageError where there is none to be had, or it fills up meanwhile."""
    base = _base()
    try:
        owned, lock = _make(base, purpose)
    except OSError as error:
        raise StorageError(f"{base}, for temporary files: {error.strerror or error}; {REMEDY}") from None
    try:
        yield owned / purpose
    except Exception as error:
        reason = _why_no_room(owned, error)
        if reason is not None:
            raise StorageError(f"{base}, for temporary files: {reason}; {REMEDY}") from error
        raise
    finally:
        shutil.rmtree(owned, ignore_errors=True)
        os.close(lock)


def sweep() -> None:
    """Remove what processes of ours have left that were killed; what cannot be removed stays."""
    with suppress(OSError, StorageError):
        base = _base()
        left = [entry for entry in os.scandir(base) if entry.name.startswith(PREFIX)]
        for entry in left:
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                _remove_if_unused(Path(entry.path))


def _remove_if_unused(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # none of ours, or just being made
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use
    finally:
        os.close(lock)


def _base() -> Path:
    chosen = os.environ.get("TMPDIR")
    if chosen:  # Python would silently take another one
        if not os.path.isdir(chosen):
            raise StorageError(f"TMPDIR {chosen} is not a folder: make it, or set TMPDIR to one")
        if not os.access(chosen, os.W_OK | os.X_OK):
            raise StorageError(f"TMPDIR {chosen} cannot be written to: set TMPDIR to a folder that can")
        return Path(chosen).absolute()
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StorageError(f"there is no folder for temporary files ({error.strerror}): set TMPDIR to one") from None


def _make(base: Path, purpose: str) -> tuple[Path, int]:
    """(the folder, its locked file); `purpose` names the folder within, which is the user's."""
    while True:
        owned = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=base))
        try:
            lock = os.open(owned / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with suppress(OSError):  # a file system without locks: the folder stays if the process is killed
                fcntl.flock(lock, fcntl.LOCK_EX)
            (owned / purpose).mkdir()
            return owned, lock
        except FileNotFoundError:  # a sweep came between the file and its lock
            continue
        except OSError:
            shutil.rmtree(owned, ignore_errors=True)
            raise


def _why_no_room(owned: Path, error: Exception) -> str | None:
    """Whether the folder is to blame: by an error in the chain of causes, or where a library has hidden it."""
    if not (owned / LOCK).exists():
        return "it was removed while it was in use"
    if not isinstance(error, StorageError):  # which names another place, unless this one is full as well
        cause: BaseException | None = error
        while cause is not None:
            said = [number for number in FULL if _says(cause, number, owned)]
            if said:
                return os.strerror(said[0])
            cause = cause.__cause__ or cause.__context__
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        largest = max((path.stat().st_size for path in owned.rglob("*") if path.is_file()), default=0)
        if limit != resource.RLIM_INFINITY and largest >= limit:
            return f"files may have at most {limit} bytes here (ulimit -f)"
    with suppress(OSError):
        if shutil.disk_usage(owned).free < NEARLY_FULL:
            return os.strerror(errno.ENOSPC)
    return None


def _says(error: BaseException, number: int, owned: Path) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename if isinstance(error.filename, str) else None
        return error.errno == number and (place is None or place.startswith(f"{owned}/"))
    return os.strerror(number) in str(error)  # of a library that turns the system's errors into its own
