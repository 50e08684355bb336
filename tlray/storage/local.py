"""Files on local disk (or on whatever is mounted there): the local half of `tlray.storage`."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tlray.errors import StorageError
from tlray.storage.types import ChangedError, FileInfo, NotFoundError, ends_too_early

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
READ_BYTES = 2**24
LONGEST_NAME = 255  # bytes; of Linux's and macOS's file systems


def list_files(path: str) -> Iterator[FileInfo]:
    with _one_line_errors(path):
        if not os.path.isdir(path):
            os.stat(path)  # FileNotFoundError where there is nothing at all
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    yield from _files_below(path)


def list_folders(path: str) -> list[str]:
    with _one_line_errors(path):
        os.stat(path)
        return sorted(name for name, is_folder in _names_in(path) if is_folder)


def read_bytes(path: str, version: str | None = None) -> bytes:
    """In as few calls as there can be: other threads want the GIL between them."""
    with _one_line_errors(path):
        file = os.open(path, os.O_RDONLY)
        try:
            before = os.fstat(file)
            _check_version(path, before, version)
            data = _read_to_end(file, before.st_size)
            if version is not None:
                _check_version(path, os.fstat(file), version)  # it may have been written to meanwhile
            return data
        finally:
            os.close(file)


def _read_to_end(file: int, expected: int) -> bytes:
    data = os.read(file, expected + 1)
    if len(data) == expected:  # the end, as one byte more was asked for
        return data
    chunks = [data]
    while chunk := os.read(file, READ_BYTES):  # it has grown, or is larger than one call reads
        chunks.append(chunk)
    return b"".join(chunks)


def read_range(path: str, offset: int, size: int, version: str | None = None) -> bytes:
    with _one_line_errors(path), open(path, "rb") as file:
        _check_version(path, os.fstat(file.fileno()), version)
        file.seek(offset)
        data = file.read(size)
        _check_version(path, os.fstat(file.fileno()), version)
        if len(data) != size:
            raise ends_too_early(path, os.fstat(file.fileno()).st_size, offset, size)
        return data


def open_file(path: str) -> BinaryIO:
    with _one_line_errors(path):
        return open(path, "rb")


def write_bytes(path: str, data: bytes | memoryview) -> None:
    with _one_line_errors(path), _temporary_beside(Path(path)) as temporary:
        temporary.write_bytes(data)
        os.replace(temporary, path)


def copy(source: Path, path: str) -> None:
    with _one_line_errors(path), _temporary_beside(Path(path)) as temporary:
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)


def create_exclusive(path: str, data: bytes) -> bool:
    with _one_line_errors(path), _temporary_beside(Path(path)) as temporary:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            return _create_without_links(path, data)
    return True


def replace(path: str, expected: bytes, data: bytes) -> bool:
    target = Path(path)
    if not target.parent.is_dir():
        return False
    with _one_line_errors(path), (target.parent / f".{target.name[:64]}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when it is closed, also by the end of the process
        try:
            if target.read_bytes() != expected:
                return False
        except FileNotFoundError:
            return False
        write_bytes(path, data)
    return True


def version_of(path: str) -> str:
    with _one_line_errors(path):
        return _version(os.stat(path))


def nearest_folder(path: str) -> str:
    """The path itself, or what is there of it."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def check_names(path: str) -> None:
    """StorageError for a path that no file system takes."""
    if "\0" in path:
        raise StorageError(f"{path!r}: a path cannot hold the character NUL")
    for name in path.split("/"):
        size = len(os.fsencode(name))
        if size > LONGEST_NAME:
            raise StorageError(f"{name[:40]}...: a name of {size} bytes is too long for a file; use {LONGEST_NAME}")


def exists(path: str) -> bool:
    with _one_line_errors(path):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return not os.path.isdir(path)


def delete(path: str) -> None:
    with _one_line_errors(path):
        Path(path).unlink(missing_ok=True)


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """A hidden name in the target's folder, which is made; removed afterwards if it is still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(6)}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _create_without_links(path: str, data: bytes) -> bool:
    """Exclusive on file systems without hard links too, but there a reader may see a part of the file."""
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _files_below(folder: str) -> Iterator[FileInfo]:
    """A folder's files and those of the folders in it, in the order of their paths; only its names are in memory."""
    for name, is_folder in _names_in(folder):
        path = os.path.join(folder, name)
        if is_folder:
            yield from _files_below(path)
            continue
        with _one_line_errors(path):
            try:
                status = os.stat(path)
            except OSError:
                try:
                    status = os.lstat(path)  # a link that leads nowhere is listed too, for whoever reads it to report
                except FileNotFoundError:  # deleted since: another process's temporary file, say
                    continue
        yield FileInfo(path, status.st_size, status.st_mtime, _version(status))


def _names_in(folder: str) -> list[tuple[str, bool]]:
    """The names in a folder, each with whether it is a folder, so sorted that the paths below them are in order."""
    here = os.path.realpath(folder) + os.sep
    names = []
    with _one_line_errors(folder):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
                    # a link to a folder that it lies in would go round for ever
                    if not (entry.is_symlink() and here.startswith(os.path.realpath(entry.path) + os.sep)):
                        names.append((entry.name, is_folder))
        except FileNotFoundError:  # deleted since it was listed
            return []
    return sorted(names, key=lambda one: one[0] + os.sep if one[1] else one[0])


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _check_version(path: str, stat: os.stat_result, version: str | None) -> None:
    if version is not None and (found := _version(stat)) != version:
        raise ChangedError.of(path, version, found)


@contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except PermissionError:
        raise StorageError(f"{path}: permission denied; choose another location or change its permissions") from None
    except (NotADirectoryError, FileExistsError):
        raise StorageError(f"{path}: a part of this path is a file where a folder is needed") from None
    except IsADirectoryError:
        raise StorageError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None
    except ValueError:  # of the functions that take a path, for a NUL in it
        check_names(path)
        raise
