"""WebDataset shards: tar files in which the files of one sample share their name up to the first dot.

The image is the file with an image's ending; its class stands in .cls, in the .json below data.columns.label, or in
.txt, the first of these that is there. Of several images of a sample (1.png, 1.seg.png) the one with no more than its
ending is taken, or the one that data.columns.image names (seg.png).
"""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

from tlray.config import DataConfig
from tlray.data.litter import is_litter
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import (
    SKIPPED,
    check_unchanged,
    container_files,
    is_excluded,
    named_errors,
    printable,
)
from tlray.data.sources.label_files import LABEL_ENDINGS, MAX_LABEL_BYTES, class_of
from tlray.data.sources.layout import file_splits
from tlray.data.sources.members import member_of
from tlray.data.sources.tar import TarDamage, is_packed, members, open_tar, plain_reason
from tlray.errors import DataError
from tlray.storage.locations import CONTAINERS, IMAGE_ENDINGS, Location

MAX_APART = 100_000  # samples without image or label that are remembered, in case that the rest of them comes later
CHOSEN = "samples have several images, of which the one without a further ending is taken (data.columns.image: another)"


@dataclass
class _Sample:
    key: str
    parts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # ending -> (offset, size) of its files
    labels: dict[str, bytes] = field(default_factory=dict)  # ending -> contents
    problem: str = ""  # a file of it that cannot be used


class WebDatasetSource:
    """Samples in the order of the shards; FILE.tar#OFFSET+SIZE names the image of one."""

    description = "WebDataset shards (tar)"

    def __init__(self, field: str, location: Location, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data
        self.remarks = Remarks()

    def entries(self) -> Iterator[Entry]:
        found = False
        self.remarks.clear()
        files = list(self._shards(self.remarks))
        splits = file_splits(self._field, self._location.uri, [uri for uri, _ in files])
        for uri, version in files:
            if is_packed(uri) and self._data.prepare == "never":
                raise DataError(
                    f"{self._field}: {uri} can only be read in its order, and data.prepare=never reads single images: "
                    "unpack it with gunzip, or remove data.prepare"
                )
            apart: dict[str, bool] = {}
            for sample in self._samples(uri):
                self._refuse_parts_elsewhere(uri, sample, apart)
                if not is_excluded(sample.key, self._data):
                    found = True
                    yield self._entry(uri, version, sample, splits.get(uri, ""))
        if not found:
            raise DataError(f"{self._field}: {self._location.uri} holds no samples")

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for (uri, version), some in groupby(entries, key=lambda entry: (member_of(entry.uri)[0], entry.version)):
            check_unchanged(uri, version)
            with named_errors(self._field, uri, "a tar file"), open_tar(uri) as file:
                for entry in some:
                    _, offset, size = member_of(entry.uri)
                    file.seek(offset)
                    yield entry, _constant(file.read(size))

    @property
    def in_any_order(self) -> bool:
        return not any(is_packed(uri) for uri, _ in self._shards(None))

    def _shards(self, remarks: Remarks | None) -> Iterator[tuple[str, str]]:
        return container_files(self._field, self._location, CONTAINERS["webdataset"], self._data, remarks)

    def _samples(self, uri: str) -> Iterator[_Sample]:
        with named_errors(self._field, uri, "a tar file"), open_tar(uri) as file:
            try:
                for key, parts in groupby(self._files(file), key=lambda member: _key_and_ending(member.name)[0]):
                    yield _sample(key, parts, file)
            except TarDamage as damage:
                kind = " tar file in gzip" if is_packed(uri) else ", uncompressed tar file"
                raise DataError(f"{self._field}: {uri} is not a whole{kind}: {damage}") from None

    def _files(self, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        """What may be part of a sample."""
        for member in members(file):
            if member.isdir() or not member.name:
                continue
            if is_litter(member.name.removeprefix("./").lstrip("/")) or member.name.rpartition("/")[2].startswith("__"):
                self.remarks.add(SKIPPED, printable(member.name))
            else:
                yield member

    def _refuse_parts_elsewhere(self, uri: str, sample: _Sample, apart: dict[str, bool]) -> None:
        """DataError where a sample's image and label are not side by side: such a shard is read as two halves."""
        has_image, has_label = bool(_images_of(sample)), any(map(_is_label, sample.parts))
        if has_image == has_label:
            return
        if apart.get(sample.key, has_image) != has_image:
            raise DataError(
                f"{self._field}: {uri}: the files of sample {sample.key!r} do not lie side by side; make the tar file "
                "with `tar --sort=name`"
            )
        if len(apart) < MAX_APART:
            apart[sample.key] = has_image

    def _entry(self, uri: str, version: str, sample: _Sample, split: str) -> Entry:
        class_name, reason = class_of(sample.key, sample.labels, self._data.columns.label)
        offset, size = next(iter(sample.parts.values()))[0]
        place, problem = self._image_of(sample)
        if place is not None:
            offset, size = place
        return Entry(
            self._field, f"{uri}#{offset}+{size}", class_name, split, size, version, sample.problem or problem or reason
        )

    def _image_of(self, sample: _Sample) -> tuple[tuple[int, int] | None, str]:
        """(offset and size of the sample's image, reason why there is none)"""
        images = _images_of(sample)
        wanted = self._data.columns.image.lower()
        chosen = [images[wanted]] if wanted in images else list(images.values())
        if len(chosen) > 1:
            chosen = [places for ending, places in images.items() if "." not in ending]
            if len(chosen) == 1 and len(chosen[0]) == 1:
                self.remarks.add(CHOSEN, f"{printable(sample.key)!r} ({_listed(images)})")
        if len(chosen) == 1 and len(chosen[0]) == 1:
            return chosen[0][0], ""
        if not images:
            return None, f"sample {sample.key!r} has no image ({_listed(sample.parts)})"
        if len(images) == 1:
            return None, f"sample {sample.key!r} has {len(next(iter(images.values())))} images ({_listed(images)})"
        return None, (
            f"sample {sample.key!r} has {sum(map(len, images.values()))} images ({_listed(images)}): name one of them "
            f"with data.columns.image, such as {next(iter(images))}"
        )


def read_packed(uri: str, offset: int, size: int, version: str = "") -> bytes:
    """Some bytes of what a .tar.gz unpacks to; all in front of them is unpacked too, so this is for a few of them."""
    check_unchanged(uri, version)
    with named_errors("the image", uri, "a tar file"), open_tar(uri) as file:
        file.seek(offset)
        return file.read(size)


def _images_of(sample: _Sample) -> dict[str, list[tuple[int, int]]]:
    return {ending: places for ending, places in sample.parts.items() if ending.rpartition(".")[2] in IMAGE_ENDINGS}


def _is_label(ending: str) -> bool:
    return ending.rpartition(".")[2] in LABEL_ENDINGS


def _listed(endings: Iterable[str]) -> str:
    return ", ".join(f".{printable(ending)}" for ending in endings)


def _sample(key: str, parts: Iterable[tarfile.TarInfo], file: BinaryIO) -> _Sample:
    sample = _Sample(key)
    for member in parts:
        ending = _key_and_ending(member.name)[1]
        sample.parts.setdefault(ending, []).append((member.offset_data, member.size))
        problem = plain_reason(member)
        if problem:
            sample.problem = f"sample {key!r}: its .{printable(ending)} {problem}"
        elif _is_label(ending):
            file.seek(member.offset_data)
            sample.labels[ending] = file.read(min(member.size, MAX_LABEL_BYTES + 1))
    return sample


def _key_and_ending(name: str) -> tuple[str, str]:
    """a/b.seg.png -> (a/b, seg.png): WebDataset's rule."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return folder + slash + key, ending.lower()


def _constant(data: bytes) -> Load:
    return lambda: data
