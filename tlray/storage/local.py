"""Files on local disk (or on whatever is mounted there): the local half of `tlray.storage`."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tlray.errors import StorageError
from tlray.storage.types import FileInfo, NotFoundError

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def list_files(path: str) -> Iterator[FileInfo]:
    with _one_line_errors(path):
        if not os.path.isdir(path):
            os.stat(path)  # FileNotFoundError where there is nothing at all
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        found = []
        for folder, names, files in os.walk(path, onerror=_raise, followlinks=True):
            here = os.path.realpath(folder) + os.sep
            # a link to a folder that it lies in would go round for ever
            names[:] = [name for name in names if not here.startswith(os.path.realpath(f"{folder}/{name}") + os.sep)]
            found += [os.path.join(folder, name) for name in files]
    for file in sorted(found):
        with _one_line_errors(file):
            try:
                # a link that leads nowhere is listed too, for whoever reads it to report
                status = os.stat(file) if os.path.exists(file) else os.lstat(file)
            except FileNotFoundError:  # deleted since: another process's temporary file, say
                continue
        yield FileInfo(file, status.st_size, status.st_mtime, f"{status.st_mtime_ns}-{status.st_size}")


def read_bytes(path: str) -> bytes:
    with _one_line_errors(path):
        return Path(path).read_bytes()


def write_bytes(path: str, data: bytes) -> None:
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


def _raise(error: OSError) -> NoReturn:
    raise error


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
