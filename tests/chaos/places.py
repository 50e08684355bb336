"""Where a round's files lie: a local folder, or a bucket. Kept while nothing writes, put back at the same location."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

Version = tuple[object, ...]


class Place(Protocol):
    """All that a run writes below its `storage`, by path relative to `uri`."""

    uri: str

    def versions(self) -> dict[str, Version]: ...
    def keep(self, folder: Path) -> None: ...
    def restore(self, folder: Path | None) -> None: ...
    def local(self, scratch: Path) -> Path: ...


class LocalPlace:
    """A folder. tlray replaces files and never writes into them, so a hard link keeps one as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, str(folder)

    def versions(self) -> dict[str, Version]:
        return {str(path.relative_to(self.folder)): status for path, status in _files(self.folder)}

    def keep(self, folder: Path) -> None:
        for path, _ in _files(self.folder):
            target = folder / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except FileNotFoundError:
                continue  # gone since it was listed: its processes stand still, those of Ray itself do not

    def restore(self, folder: Path | None) -> None:
        """As it was when it was kept there; empty for None. Times of change too: they are versions of files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for child in self.folder.iterdir():  # not the folder: it may be a mount
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if folder is not None:
            shutil.copytree(folder, self.folder, dirs_exist_ok=True)

    def local(self, scratch: Path) -> Path:
        """A folder with the files as they are now."""
        return self.folder


class BucketPlace:
    """All objects of a bucket below a prefix, reached without tlray."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}"

    def versions(self) -> dict[str, Version]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        objects = [one for page in pages for one in page.get("Contents", ())]
        return {one["Key"].removeprefix(f"{self._prefix}/"): (one["ETag"], one["LastModified"]) for one in objects}

    def keep(self, folder: Path) -> None:
        for name in self.versions():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(
                self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")["Body"].read()
            )

    def restore(self, folder: Path | None) -> None:
        for name in self.versions():
            self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
        for path, _ in _files(folder) if folder is not None else ():
            key = f"{self._prefix}/{path.relative_to(folder)}"
            self._client.put_object(Bucket=self._bucket, Key=key, Body=path.read_bytes())

    def local(self, scratch: Path) -> Path:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self.keep(scratch)
        return scratch


def _files(folder: Path) -> Iterator[tuple[Path, Version]]:
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here, name)
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            yield path, (status.st_ino, status.st_mtime_ns, status.st_size)
