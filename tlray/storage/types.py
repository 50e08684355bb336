"""What local disk and S3 have in common."""

from dataclasses import dataclass

from tlray.errors import StorageError


class NotFoundError(StorageError):
    """There is no such file, object or folder (a missing bucket is a plain StorageError)."""


@dataclass(frozen=True)
class FileInfo:
    """One file; `version` changes with its contents (the ETag on S3, modification time and size on local disk)."""

    uri: str
    size: int  # bytes
    modified: float  # seconds since 1970, by the clock of the disk or the server
    version: str
