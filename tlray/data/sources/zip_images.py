"""Zip files of class folders: CLASS/image.jpg, also where all of it lies in one folder more. FILE.zip#NAME names one.

A zip file's list of its members is its last part. It is compared with what the file holds: one that was cut, or has
something in front or behind, is refused, and so are members that overlap, which unpack to far more than there is.
"""

import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import BinaryIO

from tlray import storage
from tlray.config import DataConfig
from tlray.data.decode import BadImageError
from tlray.data.litter import is_litter
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import (
    SKIPPED,
    check_unchanged,
    class_of,
    container_files,
    is_excluded,
    named_errors,
    printable,
)
from tlray.data.sources.layout import layout_of_paths
from tlray.data.sources.members import member_of_zip
from tlray.errors import DataError
from tlray.storage.locations import CONTAINERS, Location

END = struct.Struct("<4s4H2LH")  # of the list of members, as the format's specification has it
SIGNATURE = b"PK\5\6"
MAX_COMMENT = 2**16
MAX_MEMBER_BYTES = 2**29  # unpacked; a larger file is no photo
LOCAL_HEADER = 30  # bytes in front of a member's name
READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
ENCRYPTED = 1  # of a member's flags


class ZipImagesSource:
    """Members in the order of their names."""

    in_any_order = False  # each read looks through the list of members

    def __init__(self, field: str, location: Location, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data
        self.remarks = Remarks()
        self.description = "zip files of images"  # until their names are looked at

    def entries(self) -> Iterator[Entry]:
        found = False
        self.remarks.clear()
        for uri, version in container_files(self._field, self._location, CONTAINERS["zip"], self._data, self.remarks):
            with named_errors(self._field, uri, "a zip file"), storage.open_file(uri) as file, _open(file) as archive:
                members = {name: member for name, member in archive.members.items() if self._is_users(name)}
            top = _common_folder(members)
            paths = {name.removeprefix(top): name for name in sorted(members)}
            layout = layout_of_paths(self._field, uri, list(paths), self._data.exclude)
            self.description = f"zip files: {layout.description}"
            for path, name in paths.items():
                split, folder = layout.place_of(path)
                if folder and not is_excluded(path, self._data):
                    found = True
                    reason = "is there twice" if name in archive.twice else _reason(members[name])
                    class_name = class_of(self._field, f"the folder of {uri}#{name}", folder)
                    size = members[name].file_size
                    yield Entry(self._field, f"{uri}#{name}", class_name, split or "", size, version, reason)
        if not found:
            raise DataError(
                f"{self._field}: {self._location.uri} holds no class folders with images; expected CLASS/image.jpg"
            )

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for (uri, version), some in groupby(entries, key=lambda entry: (member_of_zip(entry.uri)[0], entry.version)):
            check_unchanged(uri, version)
            with named_errors(self._field, uri, "a zip file"), storage.open_file(uri) as file, _open(file) as archive:
                for entry in some:
                    yield entry, _constant(_bytes_of(archive, member_of_zip(entry.uri)[1]))

    def _is_users(self, name: str) -> bool:
        """Litter is skipped and counted."""
        litter = is_litter(name)
        if litter:
            self.remarks.add(SKIPPED, printable(name))
        return not litter


def read_member(uri: str, version: str = "") -> bytes:
    """The bytes of one member, named as FILE.zip#NAME."""
    path, name = member_of_zip(uri)
    check_unchanged(path, version)
    with named_errors("the image", path, "a zip file"), storage.open_file(path) as file, _open(file) as archive:
        data = _bytes_of(archive, name)
    if isinstance(data, BadImageError):
        raise data
    return data


@dataclass(frozen=True)
class _Archive:
    """An open one."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]  # files by their names, folders not
    twice: frozenset[str]  # names that several members have


@contextmanager
def _open(file: BinaryIO) -> Iterator[_Archive]:
    """The archive, found to be whole; OSError with what is wrong with it."""
    try:
        num_members = _prove_end(file)
        with zipfile.ZipFile(file) as archive:
            _prove_members(archive.infolist(), num_members, archive.start_dir)
            files = [
                (_plain_name(member.filename), member)
                for member in archive.infolist()
                if not member.filename.endswith(("/", "\\"))
            ]
            counts = Counter(name for name, _ in files)
            yield _Archive(archive, dict(files), frozenset(name for name, count in counts.items() if count > 1))
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise OSError(f"{error}: copy or make it again") from None


def _prove_end(file: BinaryIO) -> int:
    """The number of members, modulo 2**16, that the last record counts; it ends with the file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END.size - MAX_COMMENT))
    tail = file.read()
    at = tail.rfind(SIGNATURE)
    if at < 0 or len(tail) - at < END.size:
        raise OSError("its list of members is not at its end: it was cut, or is no zip file; copy or make it again")
    _, disk, first_disk, _, num_members, _, _, comment = END.unpack(tail[at : at + END.size])
    behind = len(tail) - at - END.size - comment
    if behind:
        what = f"{behind} bytes behind its end" if behind > 0 else "it ends within its comment"
        raise OSError(f"{what}: copy or make it again")
    if disk or first_disk:
        raise OSError("it is one part of several: join them with `zip --fix`, or make it in one part")
    file.seek(0)
    return int(num_members)


def _prove_members(members: Sequence[zipfile.ZipInfo], num_members: int, list_at: int) -> None:
    """As many as the last record counts, from the start of the file on, none of them in another."""
    if len(members) % 2**16 != num_members and num_members != 2**16 - 1:
        raise OSError(f"its list has {len(members)} members, where its end counts {num_members}: copy or make it again")
    places = sorted((member.header_offset, member.compress_size, member.filename) for member in members)
    if places and places[0][0] != 0:
        raise OSError(f"there are {places[0][0]} bytes in front of its first member: copy or make it again")
    for (start, size, name), (following, *_) in zip(places, [*places[1:], (list_at, 0, "")], strict=True):
        if start + LOCAL_HEADER + size > following:
            raise OSError(f"its member {printable(name)!r} overlaps the next: it is damaged, or made to do harm")


def _plain_name(name: str) -> str:
    """As the format has it, with slashes; some programs on Windows write backslashes."""
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


def _common_folder(names: Iterable[str]) -> str:
    """`set/` where everything lies below set/, in folders of its own; else ""."""
    tops, deep = set(), True
    for name in names:
        tops.add(name.partition("/")[0])
        deep &= name.count("/") >= 2
    return f"{tops.pop()}/" if len(tops) == 1 and deep else ""


def _reason(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in READABLE:
        return f"is compressed in a way (number {member.compress_type}) that cannot be read: use deflate"
    if member.file_size > MAX_MEMBER_BYTES:
        return f"unpacks to {member.file_size} bytes, more than {MAX_MEMBER_BYTES}"
    return ""


def _bytes_of(archive: _Archive, name: str) -> bytes | BadImageError:
    """Unpacked no further than the list says, and compared with its checksum."""
    member = archive.members.get(name)
    if member is None:
        raise storage.NotFoundError(f"there is no {printable(name)!r} in it")
    reason = _reason(member)
    if reason:
        return BadImageError(reason)
    try:
        with archive.file.open(member) as file:
            return file.read(member.file_size + 1)  # read() alone would unpack all that there is
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, ValueError) as error:
        return BadImageError(f"cannot be unpacked: {error}")
    except Exception as error:  # zlib.error, lzma.LZMAError and the like
        return BadImageError(f"cannot be unpacked: {type(error).__name__} {error}")


def _constant(data: bytes | BadImageError) -> Load:
    return partial(_give, data)


def _give(data: bytes | BadImageError) -> bytes:
    if isinstance(data, BadImageError):
        raise data
    return data
