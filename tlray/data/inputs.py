"""Images that are named on a command line: files, patterns, folders and prefixes, without labels, as a stream.

    for info in stream_inputs(["photos/", "s3://bucket/new/*.jpg"]): ...        # by uri, each once

Memory does not grow with what a folder or a prefix holds.
"""

import contextlib
import fnmatch
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence

from tlray import storage
from tlray.errors import DataError
from tlray.storage import FileInfo

WILDCARDS = re.compile(r"[*?\[]")
LISTING_THREADS = 16  # requests at once where a listing can be cut into parts
UNKNOWN_SIZE = -1  # of a file that is named itself: it is not asked for before it is read


def stream_inputs(inputs: Iterable[str]) -> Iterator[FileInfo]:
    """Every file that `inputs` name, sorted by uri, those that several of them name once.

    A file that is named itself has no version. DataError for an input that names nothing.
    """
    last = None
    for info in heapq.merge(*map(expand, inputs), key=lambda one: one.uri):
        if info.uri != last:
            yield info
        last = info.uri


def expand(given: str) -> Iterator[FileInfo]:
    """The files that one input names, sorted by uri; DataError when there are none."""
    location = storage.absolute(given)
    if storage.exists(location):
        yield FileInfo(location, UNKNOWN_SIZE, 0.0, "")
        return
    pattern = WILDCARDS.search(location) is not None
    found = False
    with contextlib.suppress(storage.NotFoundError):
        for info in _matching(location) if pattern else _visible_below(location):
            found = True
            yield info
        if not found and not pattern and not storage.is_remote(given):
            raise DataError(f"{given} holds no files")
    if not found:
        raise DataError(f"no file matches {given}" if pattern else f"{given} does not exist")


def files_below(location: str, num_threads: int = 1) -> Iterator[tuple[FileInfo, str]]:
    """(file, its path relative to `location`) of every file below it."""
    for info in storage.list_files(location, num_threads):
        yield info, info.uri.removeprefix(location).lstrip("/")


def is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern: `*` stays within a folder and `**` does not."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return matches(names, pattern[1:]) or matches(names[1:], pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])


def _visible_below(location: str) -> Iterator[FileInfo]:
    return (info for info, path in files_below(location, LISTING_THREADS) if not is_hidden(path))


def _matching(pattern: str) -> Iterator[FileInfo]:
    """Lists what lies below the folder in front of the first wildcard; hidden files where the pattern names some."""
    *folders, _ = WILDCARDS.split(pattern, maxsplit=1)[0].split("/")
    if storage.is_remote(pattern) and len(folders) < 3:  # s3: and the empty part between the slashes
        raise DataError(f"{pattern}: the bucket's name cannot be a pattern")
    parts = pattern.split("/")[len(folders) :]
    with_hidden = any(part.startswith(".") for part in parts)
    for info, path in files_below("/".join(folders) or "/", LISTING_THREADS):
        if (with_hidden or not is_hidden(path)) and matches(path.split("/"), parts):
            yield info
