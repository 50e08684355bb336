"""The file `format` of a run folder: the version of its layout, and the checksums of what never changes in it.

    write_format(run_uri, {"config.yaml": checksum, "plan.json": checksum, ...})     # the last write of a preparation
    data = read_verified(run_uri, "plan.json")
    with open_verified(run_uri, "manifest.parquet") as path: ...                     # for what is large

A folder without it was not prepared to the end, or by another version of tlray: nothing in it is read.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tlray import storage
from tlray.errors import DamagedError, StorageError
from tlray.storage.sealed import checksum_of, read_document, write_document

FORMAT, CONFIG, PLAN, RANKING = "format", "config.yaml", "plan.json", "ranking.json"
MANIFEST, BAD_IMAGES = "manifest.parquet", "bad_images.jsonl"
LAYOUT = 3  # 1 had no checksums and no file `format`; 2 had the libraries' own kinds of classifier, and no solver


def write_format(run_uri: str, checksums: Mapping[str, str]) -> None:
    write_document(storage.join(run_uri, FORMAT), {"layout": LAYOUT, "files": dict(checksums)})


def read_format(run_uri: str) -> dict[str, str]:
    """sha256, by name, of the files that never change; StorageError for a folder of another version, or of no run."""
    uri = storage.join(run_uri, FORMAT)
    try:
        document = read_document(uri, _remedy(run_uri, FORMAT))
    except storage.NotFoundError:
        if not storage.exists(storage.join(run_uri, CONFIG)):
            raise StorageError(f"{run_uri} is not a run folder: it has no {CONFIG}") from None
        if not storage.exists(storage.join(run_uri, MANIFEST)):
            raise StorageError(
                f"{run_uri} was interrupted before its first trial: start it again with `tlray run {run_uri}/{CONFIG}`"
            ) from None
        raise StorageError(
            f"{run_uri} has no file `{FORMAT}`: an earlier version of tlray made it, or it was interrupted before its "
            f"first trial; start a new run with `tlray run {run_uri}/{CONFIG}`"
        ) from None
    if document["layout"] != LAYOUT:
        raise StorageError(
            f"{uri}: layout {document['layout']}, and this version of tlray reads layout {LAYOUT}: "
            f"use the version that made the run, or start a new one with `tlray run {run_uri}/{CONFIG}`"
        )
    files: dict[str, str] = document["files"]
    return files


def read_verified(run_uri: str, name: str) -> bytes:
    """One of the files that never change; DamagedError where it is not what was written."""
    checksum = read_format(run_uri).get(name, "")
    with _missing_is_damage(run_uri, name):
        data = storage.read_bytes(storage.join(run_uri, name))
    if checksum_of(data) != checksum:
        raise _damaged(run_uri, name)
    return data


@contextmanager
def open_verified(run_uri: str, name: str) -> Iterator[Path]:
    """The same as a file on local disk, a copy where the run folder is elsewhere."""
    checksum = read_format(run_uri).get(name, "")
    with _missing_is_damage(run_uri, name), storage.local_copy(storage.join(run_uri, name)) as path:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise _damaged(run_uri, name)
        yield path


def is_verified(run_uri: str, name: str, checksums: Mapping[str, str]) -> bool:
    """Whether a small file is there and is what the format says."""
    try:
        return checksum_of(storage.read_bytes(storage.join(run_uri, name))) == checksums.get(name)
    except storage.NotFoundError:
        return False


@contextmanager
def _missing_is_damage(run_uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except storage.NotFoundError:
        raise DamagedError(f"{storage.join(run_uri, name)} is missing: {_remedy(run_uri, name)}") from None


def _damaged(run_uri: str, name: str) -> DamagedError:
    return DamagedError.of(storage.join(run_uri, name), _remedy(run_uri, name))


def _remedy(run_uri: str, name: str) -> str:
    again = "start a new run" if name == CONFIG else f"start a new run with `tlray run {run_uri}/{CONFIG}`"
    return f"restore it from a copy, or {again}"
