"""Files on local disk and on S3 alike.

    for info in storage.list_files("s3://bucket/images"):
        data = storage.read_bytes(info.uri)

A location is a local path or `s3://bucket/key`. Endpoint, credentials, profile and region of S3 are what boto3 finds
(AWS_ENDPOINT_URL, AWS_PROFILE, AWS_REGION, ~/.aws, instance roles). Without credentials, or with
AWS_NO_SIGN_REQUEST=yes, requests are not signed, which is enough for public buckets. What may pass is tried again for a
while (TLRAY_S3_ATTEMPTS and the others of s3_settings.py); whatever goes wrong for good is a StorageError of one line.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tlray.errors import StorageError, UnreachableError
from tlray.process.scratch import temporary_folder
from tlray.storage import local, s3, s3_settings
from tlray.storage.document import parse_json, parse_object
from tlray.storage.s3 import describe_access, forget_clients
from tlray.storage.s3_access import S3Access
from tlray.storage.types import ChangedError, FileInfo, NotFoundError

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "ChangedError",
    "FileInfo",
    "NotFoundError",
    "S3Access",
    "absolute",
    "be_patient",
    "check_writable",
    "create_exclusive",
    "delete",
    "describe_access",
    "download",
    "exists",
    "forget_clients",
    "is_remote",
    "join",
    "list_files",
    "list_folders",
    "local_copy",
    "nearest_folder",
    "open_file",
    "parse_json",
    "parse_object",
    "pyarrow_filesystem",
    "read_bytes",
    "read_range",
    "read_text",
    "replace",
    "upload_folder",
    "version_of",
    "write_bytes",
    "write_text",
]


def be_patient() -> None:
    """For what runs for hours: this process tries requests to S3 for ten minutes, not for one, from now on."""
    if s3_settings.be_patient():
        forget_clients()


def is_remote(uri: str) -> bool:
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The location without `~`, `..` or a trailing slash, so that any process understands it."""
    if "\0" in uri:
        raise StorageError(f"{uri!r}: a location cannot hold a NUL")
    if is_remote(uri):
        s3.bucket_and_key(uri)
        return uri.rstrip("/")
    if "://" in uri:
        raise StorageError(f"{uri}: only local paths and s3:// locations can be used")
    path = os.path.abspath(os.path.expanduser(uri))
    local.check_names(path)
    return path


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def list_files(uri: str, num_threads: int = 1) -> Iterator[FileInfo]:
    """Every file below a folder, recursively, sorted by uri, as it is found: memory does not grow with the listing.

    `num_threads` requests at once on S3, where a long listing has folders that can be listed side by side. A local
    folder that does not exist is a NotFoundError. S3 has no folders: a prefix without objects lists nothing.
    """
    return s3.list_files(uri, num_threads) if is_remote(uri) else local.list_files(uri)


def list_folders(uri: str) -> list[str]:
    """The names of the folders right in a folder, sorted; on S3 the next parts of the keys that go on below them."""
    return s3.list_folders(uri) if is_remote(uri) else local.list_folders(uri)


def read_bytes(uri: str, version: str | None = None) -> bytes:
    """The whole file; NotFoundError when there is none.

    With a `version` (FileInfo.version) that very one: ChangedError when the file is no longer the one that was listed.
    An empty version is any, as of servers whose listings have none.
    """
    version = version or None
    return s3.read_bytes(uri, version) if is_remote(uri) else local.read_bytes(uri, version)


def read_range(uri: str, offset: int, size: int, version: str | None = None) -> bytes:
    """Exactly `size` bytes from byte `offset` on; StorageError when the file ends before, else as read_bytes."""
    version = version or None
    return s3.read_range(uri, offset, size, version) if is_remote(uri) else local.read_range(uri, offset, size, version)


def open_file(uri: str) -> BinaryIO:
    """The file opened for reading at any place; on S3 it is read in ranges, all of one version.

    NotFoundError when there is none, ChangedError from a read when it was replaced since it was opened (on S3).
    """
    return s3.open_file(uri) if is_remote(uri) else local.open_file(uri)


def read_text(uri: str) -> str:
    """The whole file as UTF-8."""
    try:
        return read_bytes(uri).decode()
    except UnicodeDecodeError:
        raise StorageError(f"{uri} is not a text file in UTF-8") from None


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a file whole or not at all; a reader never sees a part of it. Missing folders are made."""
    if is_remote(uri):
        s3.write_bytes(uri, data)
    else:
        local.write_bytes(uri, data)


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


def create_exclusive(uri: str, data: bytes) -> bool:
    """Write a file only if there is none; of many who try at once, one gets True and the others False.

    On S3 it takes a server that honours `If-None-Match: *` (AWS, Ceph and MinIO do).
    """
    return s3.create_exclusive(uri, data) if is_remote(uri) else local.create_exclusive(uri, data)


def replace(uri: str, expected: bytes, data: bytes) -> bool:
    """Write a file only if it still holds `expected`: compare and swap. Of many who try at once, one gets True.

    False where it holds something else, or is gone. No two writers may ever write the same `data`. On S3 it takes a
    server that honours `If-Match` on writes (AWS, Ceph and MinIO do); on local disk, one whose locks all can see.
    """
    return s3.replace(uri, expected, data) if is_remote(uri) else local.replace(uri, expected, data)


def version_of(uri: str) -> str:
    """FileInfo.version of one file; NotFoundError when there is none."""
    return s3.version_of(uri) if is_remote(uri) else local.version_of(uri)


def exists(uri: str) -> bool:
    """Whether a file is there; a folder is not a file."""
    return s3.exists(uri) if is_remote(uri) else local.exists(uri)


def delete(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    if is_remote(uri):
        s3.delete(uri)
    else:
        local.delete(uri)


def upload_folder(folder: Path, uri: str) -> None:
    """Copy every file below a local folder to below `uri`."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        destination = join(uri, path.relative_to(folder).as_posix())
        if is_remote(uri):
            s3.upload(path, destination)
        else:
            local.copy(path, destination)


def download(uri: str, path: Path) -> None:
    """Copy a file to a local path as it arrives, without holding it in memory; a failure may leave a part there."""
    if is_remote(uri):
        s3.download(uri, path)
    else:
        local.copy(Path(uri), str(path))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path to one file: itself when it is local, else a download that is deleted afterwards."""
    if not is_remote(uri):
        if not exists(uri):
            raise NotFoundError(f"{uri} does not exist")
        yield Path(uri)
        return
    with temporary_folder("download") as folder:
        path = folder / uri.rpartition("/")[2]  # the name's ending may say what is in it
        s3.download(uri, path)
        yield path


def nearest_folder(uri: str) -> str:
    """The location itself, or as much of a local path as is there: for probes that make no folder."""
    return uri if is_remote(uri) else local.nearest_folder(uri)


def check_writable(uri: str) -> None:
    """Write and delete a small file below `uri`; StorageError with the remedy where that is refused.

    Nothing stays: a local folder that is not there yet is not made, the one that it would lie in is tried instead.
    """
    probe = join(nearest_folder(uri), f".tlray-probe-{secrets.token_hex(4)}")
    try:
        write_bytes(probe, b"tlray")
        delete(probe)
    except StorageError as error:
        reason = str(error).replace(probe, probe.rpartition("/")[0]).removeprefix(f"{uri}: ")
        kind = UnreachableError if isinstance(error, UnreachableError) else StorageError
        raise kind(f"cannot write to {uri}: {reason}") from None


def pyarrow_filesystem(uri: str) -> tuple["pyarrow.fs.FileSystem", str]:
    """The location for pyarrow, with the endpoint and credentials that boto3 finds -> (file system, path on it)."""
    import pyarrow.fs

    return s3.pyarrow_filesystem(uri) if is_remote(uri) else (pyarrow.fs.LocalFileSystem(), absolute(uri))
