"""Images that are named on a command line: files, patterns, folders and prefixes, without labels, as a stream.

    for info in stream_inputs(["photos/", "s3://bucket/new/*.jpg"]): ...        # by uri, each once

Memory does not grow with what a folder or a prefix holds.
"""

import fnmatch
import heapq
from collections.abc import Iterable, Iterator, Sequence

from tlray import storage
from tlray.data.litter import is_litter
from tlray.errors import DataError
from tlray.storage import FileInfo
from tlray.storage.locations import WILDCARDS, describe_missing, locate

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
    location = locate(given)
    if location.kind in ("image", "file"):
        yield FileInfo(location.uri, UNKNOWN_SIZE, 0.0, "")
        return
    if location.kind == "missing":
        raise DataError(describe_missing(given))
    if location.kind not in ("folder", "pattern"):
        raise DataError(f"{given} is {location.words}, not images: give image files, folders of them, or patterns")
    found = False
    for info in _matching(location.uri) if location.kind == "pattern" else _visible_below(location.uri):
        found = True
        yield info
    if not found:
        raise DataError(f"no file matches {given}" if location.kind == "pattern" else f"{given} holds no files")


def files_below(location: str, num_threads: int = 1) -> Iterator[tuple[FileInfo, str]]:
    """(file, its path relative to `location`) of every file below it."""
    for info in storage.list_files(location, num_threads):
        yield info, info.uri.removeprefix(location).lstrip("/")


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern: `*` stays within a folder and `**` does not."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return matches(names, pattern[1:]) or matches(names[1:], pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])


def _visible_below(location: str) -> Iterator[FileInfo]:
    return (info for info, path in files_below(location, LISTING_THREADS) if not is_litter(path))


def _matching(pattern: str) -> Iterator[FileInfo]:
    """Lists what lies below the folder in front of the first wildcard; hidden files where the pattern names some."""
    *folders, _ = WILDCARDS.split(pattern, maxsplit=1)[0].split("/")
    if storage.is_remote(pattern) and len(folders) < 3:  # s3: and the empty part between the slashes
        raise DataError(f"{pattern}: the bucket's name cannot be a pattern")
    parts = pattern.split("/")[len(folders) :]
    with_hidden = any(part.startswith(".") for part in parts)
    folder = "/".join(folders) or "/"
    try:
        for info, path in files_below(folder, LISTING_THREADS):
            if (with_hidden or not is_litter(path)) and matches(path.split("/"), parts):
                yield info
    except storage.NotFoundError:
        raise DataError(f"no file matches {pattern}: {describe_missing(folder)}") from None
