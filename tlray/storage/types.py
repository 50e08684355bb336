"""What local disk and S3 have in common."""

from dataclasses import dataclass

from tlray.errors import StorageError


class NotFoundError(StorageError):
    """There is no such file, object or folder (a missing bucket is a plain StorageError)."""


class ChangedError(StorageError):
    """A file is no longer the version that was asked for."""

    @classmethod
    def of(cls, uri: str, asked: str, found: str = "another") -> "ChangedError":
        return cls(f"{uri} has changed since it was listed (version {asked} then, {found} now); list the data again")


@dataclass(frozen=True)
class FileInfo:
    """One file; `version` changes with its contents (the ETag on S3, modification time and size on local disk)."""

    uri: str
    size: int  # bytes
    modified: float  # seconds since 1970, by the clock of the disk or the server
    version: str


def ends_too_early(uri: str, num_bytes: int, offset: int, size: int) -> StorageError:
    """The error for a range that reaches past the end of a file of `num_bytes`."""
    return StorageError(f"{uri} has {num_bytes} bytes, too few for {size} bytes from byte {offset} on")
