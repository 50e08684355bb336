"""The files below a location that a source looks at, and how a mistake in one of them is told."""

import fnmatch
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from tlray import storage
from tlray.config import DataConfig
from tlray.data.class_names import ClassNameError, class_name
from tlray.data.litter import is_litter
from tlray.data.sources.entry import Remarks
from tlray.data.split_names import split_named
from tlray.errors import DataError
from tlray.storage import FileInfo
from tlray.storage.locations import Location, describe_missing

LISTING_THREADS = 16  # requests at once where a listing can be cut into parts
SKIPPED = "hidden files, and files of the system or of tools, are skipped"


def list_visible(field: str, location: str, remarks: Remarks | None = None) -> Iterator[tuple[str, FileInfo]]:
    """(path relative to the location, file) of every file that may be the user's; DataError for no such folder.

    Hidden files and litter are skipped, and counted in `remarks`.
    """
    try:
        for info in storage.list_files(location, num_threads=LISTING_THREADS):
            path = info.uri.removeprefix(location).lstrip("/")
            if not is_litter(path):
                yield path, info
            elif remarks is not None:
                remarks.add(SKIPPED, printable(path))
    except storage.NotFoundError:
        raise DataError(f"{field}: {describe_missing(location)}") from None


def container_files(
    field: str, location: Location, endings: Sequence[str], data: DataConfig, remarks: Remarks | None = None
) -> Iterator[tuple[str, str]]:
    """(uri, version) of the files with one of the endings: the location itself, or those below it, sorted.

    A single file has no version, as it was not listed.
    """
    if location.is_file:
        yield location.uri, ""
        return
    found = False
    for path, info in list_visible(field, location.uri, remarks):
        if path.lower().endswith(tuple(endings)) and not is_excluded(path, data):
            found = True
            yield info.uri, info.version
    if not found:
        raise DataError(f"{field}: {location.uri} holds no files that end in {' or '.join(endings)}")


def printable(name: str) -> str:
    """A name for a message, also one that is not valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_excluded(path: str, data: DataConfig) -> bool:
    return fits_any(path, data.exclude)


def fits_any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_unchanged(uri: str, version: str) -> None:
    """ChangedError when a container is no longer the one that was listed: its members lie elsewhere then."""
    if version:
        storage.read_range(uri, 0, 1, version)


@contextmanager
def named_errors(field: str, uri: str, kind: str) -> Iterator[None]:
    """What pyarrow says of a damaged file, and a file that is not there, as one line that names the field."""
    try:
        yield
    except storage.NotFoundError:
        raise DataError(f"{field}: {uri} does not exist") from None
    except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:  # OSError: pyarrow's too
        raise DataError(f"{field}: {uri} cannot be read as {kind}: {' '.join(str(error).split())}") from None


def class_of(field: str, where: str, text: str) -> str:
    """A label, or a folder's name, as a class; DataError that names the row or folder (`where`) for none."""
    try:
        return class_name(text)
    except ClassNameError as error:
        raise DataError(f"{field}: {where}: {error}") from None


def split_of(field: str, where: str, value: str) -> str:
    """A value of a split column as train, val or test; DataError that names the row (`where`) for others.

    What the user names as data.val is val: a column that says otherwise contradicts.
    """
    split = split_named(value)
    if split is None:
        raise DataError(f"{field}: {where} has split {value!r}; expected train, val or test")
    own = field.removeprefix("data.")
    if own not in ("train", "data") and split != own:  # "data": of `evaluate`, for which any split will do
        raise DataError(f"{field}: {where} has split {value!r}; a location named as {field} can only hold {own}")
    return split
