"""WebDataset shards: plain tar files in which the files of one sample share their name up to the first dot.

The image is the file with an image's ending; its class stands in .cls, in the .json below data.columns.label, or in
.txt, the first of these that is there.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources.entry import Entry, Load
from tlray.data.sources.files import check_unchanged, container_files, is_excluded, named_errors
from tlray.errors import DataError

TAR = (".tar",)
IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif")
LABEL_ENDINGS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 2**20
MEMBER = re.compile(r"(.*)#(\d+)\+(\d+)")


@dataclass
class _Sample:
    key: str
    parts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # ending -> (offset, size) of its files
    labels: dict[str, bytes] = field(default_factory=dict)  # ending -> contents


class WebDatasetSource:
    """Samples in the order of the shards; FILE.tar#OFFSET+SIZE names the image of one."""

    description = "WebDataset shards (tar)"

    def __init__(self, field: str, location: str, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data

    def entries(self) -> Iterator[Entry]:
        found = False
        for uri, version in container_files(self._field, self._location, TAR, self._data):
            for sample in self._samples(uri):
                if not is_excluded(sample.key, self._data):
                    found = True
                    yield self._entry(uri, version, sample)
        if not found:
            raise DataError(f"{self._field}: {self._location} holds no samples")

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for (uri, version), members in groupby(entries, key=lambda entry: (member_of(entry.uri)[0], entry.version)):
            check_unchanged(uri, version)
            with named_errors(self._field, uri, "a tar file"), storage.open_file(uri) as file:
                for entry in members:
                    _, offset, size = member_of(entry.uri)
                    file.seek(offset)
                    yield entry, _constant(file.read(size))

    def _samples(self, uri: str) -> Iterator[_Sample]:
        with named_errors(self._field, uri, "a tar file"), storage.open_file(uri) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for key, parts in groupby(_files_of(tar), key=lambda member: _key_and_ending(member.name)[0]):
                        yield _sample(key, parts, file)
            except tarfile.TarError as error:
                raise DataError(f"{self._field}: {uri} is not a whole, uncompressed tar file ({error})") from None

    def _entry(self, uri: str, version: str, sample: _Sample) -> Entry:
        images = [place for ending in IMAGE_ENDINGS for place in sample.parts.get(ending, ())]
        class_name, reason = _class_of(sample, self._data.columns.label)
        if len(images) != 1:
            endings = ", ".join(f".{ending}" for ending in sample.parts)
            reason = f"sample {sample.key!r} has {len(images) or 'no'} image{'s' * (len(images) > 1)} ({endings})"
        offset, size = images[0] if images else next(iter(sample.parts.values()))[0]
        return Entry(self._field, f"{uri}#{offset}+{size}", class_name, "", size, version, reason)


def member_of(uri: str) -> tuple[str, int, int]:
    """FILE.tar#OFFSET+SIZE taken apart."""
    found = MEMBER.fullmatch(uri)
    assert found is not None, uri
    return found[1], int(found[2]), int(found[3])


def _class_of(sample: _Sample, key: str) -> tuple[str, str]:
    """(class, reason why there is none)"""
    for ending in LABEL_ENDINGS:
        if ending not in sample.parts:
            continue
        try:
            text = sample.labels[ending].decode().strip()
            value: Any = json.loads(text)[key] if ending == "json" else text
        except (KeyError, TypeError, ValueError):  # ValueError: not UTF-8, not JSON
            what = f"has no {key!r} (data.columns.label)" if ending == "json" else "is not text in UTF-8"
            return "", f"sample {sample.key!r}: its .{ending} {what}"
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value), ""
        return "", f"sample {sample.key!r}: its .{ending} holds no class"
    return "", f"sample {sample.key!r} has no label (.cls, .json or .txt)"


def _sample(key: str, parts: Iterable[tarfile.TarInfo], file: BinaryIO) -> _Sample:
    sample = _Sample(key)
    for member in parts:
        ending = _key_and_ending(member.name)[1]
        sample.parts.setdefault(ending, []).append((member.offset_data, member.size))
        if ending in LABEL_ENDINGS and member.size <= MAX_LABEL_BYTES:
            file.seek(member.offset_data)
            sample.labels[ending] = file.read(member.size)
    return sample


def _files_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The visible files of a shard, one after the other; the tar file keeps none of them."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        name = member.name.rpartition("/")[2]
        if member.isreg() and not name.startswith((".", "__")):
            yield member


def _key_and_ending(name: str) -> tuple[str, str]:
    """a/b.seg.png -> (a/b, png): WebDataset's rule for the key; the last ending says what the file is."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0], base.rpartition(".")[2].lower()


def _constant(data: bytes) -> Load:
    return lambda: data
