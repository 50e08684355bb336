"""What a location is: decided here, in one way, for images, models, runs and whatever else a user names.

locate("S.TAR").kind                    # "webdataset"
locate("photos [1]").kind               # "folder": what exists is itself, whatever its name looks like
locate("photos/*.jpg").kind             # "pattern": only where nothing is called so
locate("runs/birds/20260101").kind      # "run"
describe_missing("runs/brids")          # "runs/brids does not exist; did you mean runs/birds?"
"""

import os
import re
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tlray import storage
from tlray.errors import StorageError, nearest

Kind = Literal[
    "missing", "pattern", "folder", "bundle", "run", "champion", "image", "csv", "parquet", "webdataset", "zip", "file"
]

CHECKSUMS = "SHA256SUMS"  # the last file of an export bundle
CHAMPION = "champion.json"
RUN_FILES = ("config.yaml", "manifest.parquet")
IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif")
# Files that hold labelled images, or name them, by what they end in; in the order in which a folder is looked at.
CONTAINERS: dict[Kind, tuple[str, ...]] = {
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz"),
    "zip": (".zip",),
}
WORDS: dict[Kind, str] = {
    "folder": "a folder",
    "bundle": "an export bundle",
    "run": "a run folder",
    "champion": "a champion",
    "image": "an image",
    "csv": "a table in CSV",
    "parquet": "a Parquet file",
    "webdataset": "a tar file",
    "zip": "a zip file",
    "file": "a file of no known kind",
    "pattern": "a pattern",
    "missing": "nothing",
}
WILDCARDS = re.compile(r"[*?\[]")
NUM_LOOKED_AT = 1000  # names beside a missing one; one page of S3's listing


@dataclass(frozen=True)
class Location:
    """A location as any process understands it, and what lies there."""

    uri: str
    kind: Kind

    @property
    def is_file(self) -> bool:
        return self.kind in ("image", "file", *CONTAINERS) or (
            self.kind == "champion" and self.uri.endswith(f"/{CHAMPION}")
        )

    @property
    def words(self) -> str:
        """What it is, for a sentence about it."""
        return WORDS[self.kind]


def locate(given: str) -> Location:
    """What `given` is. StorageError where it cannot be looked at, or is no file and no folder."""
    uri = storage.absolute(given)
    if storage.exists(uri):
        _refuse_devices(uri)
        return Location(uri, "champion" if uri.endswith(f"/{CHAMPION}") else kind_of_file(uri))
    if _is_folder(uri):
        return Location(uri, _kind_of_folder(uri))
    if not storage.is_remote(uri) and os.path.islink(uri):
        raise StorageError(f"{given} is a link to {os.readlink(uri)}, which does not exist")
    return Location(uri, "pattern" if WILDCARDS.search(uri) else "missing")


def kind_of_file(name: str) -> Kind:
    """By its ending, whatever its case."""
    lower = name.lower()
    for kind, endings in CONTAINERS.items():
        if lower.endswith(endings):
            return kind
    return "image" if lower.rpartition(".")[2] in IMAGE_ENDINGS else "file"


def supported_endings() -> str:
    """The endings of files with labelled images, for a message."""
    return ", ".join(ending for endings in CONTAINERS.values() for ending in endings)


def describe_missing(given: str) -> str:
    """Half a sentence about a location that is not there: where its path ends, and which name was likely meant."""
    uri = storage.absolute(given)
    there, missing = _last_folder_that_exists(uri)
    near = nearest(missing, _names_in(there)) if there else []
    if not near:
        return f"{given} does not exist"
    rest = uri[len(storage.join(there, missing)) :]
    meant = storage.join(there, near[0]) + rest
    return f"{given} does not exist; did you mean {_as_given(meant, given, uri)}?"


def _refuse_devices(uri: str) -> None:
    if not storage.is_remote(uri) and not os.path.isfile(uri):
        raise StorageError(f"{uri} is neither a file nor a folder")


def _is_folder(uri: str) -> bool:
    if not storage.is_remote(uri):
        return os.path.isdir(uri)
    return next(iter(storage.list_files(uri)), None) is not None


def _kind_of_folder(uri: str) -> Kind:
    def holds(name: str) -> bool:
        return storage.exists(storage.join(uri, name))

    if holds(CHECKSUMS):
        return "bundle"
    if holds(CHAMPION):
        return "champion"
    return "run" if all(map(holds, RUN_FILES)) else "folder"


def _last_folder_that_exists(uri: str) -> tuple[str, str]:
    """(the folder, the name in it that is not there)"""
    folder, _, missing = uri.rpartition("/")
    if storage.is_remote(uri):
        return (folder, missing) if folder != "s3:/" else ("", missing)
    while folder and not os.path.isdir(folder):
        folder, _, missing = folder.rpartition("/")
    return folder or "/", missing


def _names_in(folder: str) -> list[str]:
    """Some of the names in a folder; none where they cannot be listed, as this only helps an error."""
    try:
        if not storage.is_remote(folder):
            with os.scandir(folder) as entries:
                return [entry.name for entry in islice(entries, NUM_LOOKED_AT)]
        files = islice(storage.list_files(folder), NUM_LOOKED_AT)
        return list(dict.fromkeys(file.uri.removeprefix(f"{folder}/").partition("/")[0] for file in files))
    except (OSError, StorageError):
        return []


def _as_given(meant: str, given: str, uri: str) -> str:
    """A relative path where the user has given one."""
    base = uri[: -len(given.rstrip("/"))] if uri.endswith(given.rstrip("/")) else ""
    return meant.removeprefix(base) if base else meant
