"""The members of a tar file up to an end that is proved: two empty blocks, and nothing but zeros behind them.

    for member in members(file): ...        # TarDamage where the file is cut, damaged, or more than one tar file

tarfile takes the first header that makes no sense for the end: what lies behind it would be lost without a word.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from tlray import storage

BLOCK = tarfile.BLOCKSIZE
AT_ONCE = 2**20  # bytes of the padding that are looked at together
MAX_HEADER_BYTES = 2**20  # of a long name or of extended attributes; real ones have some hundred
BEGINNINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
AGAIN = "copy or make it again"


PACKED = (".tar.gz", ".tgz")
MAX_UNPACKED_BYTES = 2**30  # of any .tar.gz; of a large one, MAX_TIMES its size: images hardly shrink
MAX_TIMES = 100


class TarDamage(Exception):
    """What is wrong, and where, as half a sentence that follows the name of the file."""


def is_packed(uri: str) -> bool:
    """Whether it is a .tar.gz: a stream that is read in its order."""
    return uri.lower().endswith(PACKED)


@contextmanager
def open_tar(uri: str) -> Iterator[BinaryIO]:
    """The bytes of a tar file, unpacked where it is a .tar.gz."""
    with storage.open_file(uri) as file:
        if not is_packed(uri):
            yield file
            return
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield cast(BinaryIO, _Unpacked(stream, max(MAX_UNPACKED_BYTES, MAX_TIMES * size)))


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member in the order of the file, which keeps none of them."""
    start = file.read(len(max(BEGINNINGS, key=len)))
    file.seek(0)
    for beginning, name in BEGINNINGS.items():
        if start.startswith(beginning):
            raise TarDamage(f"it is compressed with {name}")
    try:
        yield from _members(file)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        words = " ".join(f"{error}".split()) or type(error).__name__
        raise TarDamage(f"{words}; {AGAIN}") from None


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
        before = -1
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]
            if member.size < 0 or tar.offset <= before:
                raise TarDamage(f"the header at byte {member.offset} has a size that cannot be; {AGAIN}")
            before = tar.offset
            yield member
        _prove_end(file, tar.offset)


def _prove_end(file: BinaryIO, at: int) -> None:
    """The two empty blocks lie at byte `at`, and all behind them is zeros too."""
    file.seek(at)
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        kind = "ends within the header" if len(block) < BLOCK else "has a damaged header"
        raise TarDamage(f"it {kind} at byte {at}, where a member or the end was expected; {AGAIN}")
    second = file.read(BLOCK)
    if len(block) + len(second) < 2 * BLOCK and not second.strip(b"\0"):
        raise TarDamage(f"it ends at byte {at + len(block) + len(second)}, without two empty blocks: cut; {AGAIN}")
    at, data = at + BLOCK, second
    while data:
        zeros = len(data) - len(data.lstrip(b"\0"))
        if zeros < len(data):
            raise TarDamage(_what_follows(file, at + zeros))
        at += len(data)
        data = file.read(AT_ONCE)


def _what_follows(file: BinaryIO, at: int) -> str:
    """What lies behind the end: a second tar file begins at a block, and its first header holds a checksum."""
    at -= at % BLOCK
    file.seek(at)
    try:
        tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return f"there are other bytes behind its end, at byte {at}; {AGAIN}"
    return (
        f"a second tar file begins behind its end, at byte {at}, as when two are joined with `cat`: keep them apart, "
        "or join them with `tar --concatenate`"
    )


class _Unpacked:
    """What a gzip stream holds, as a file that is cheap to read forwards only, and ends before it is absurdly large."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if self._stream.tell() > self._limit:
            raise TarDamage(f"it unpacks to more than {self._limit} bytes, which images do not")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_SET
        if offset < self._stream.tell():
            return self._stream.seek(offset)
        while (left := offset - self._stream.tell()) > 0 and self.read(min(left, AT_ONCE)):
            pass
        return self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()


class _Headers:
    """The file as tarfile reads it: headers, never more of them at once than there is reason for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise TarDamage(f"a header before byte {self._file.tell()} claims to be {size} bytes long; {AGAIN}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def plain_reason(member: tarfile.TarInfo) -> str:
    """Why a member's bytes do not lie in one piece in the file; "" where they do."""
    if member.issparse():
        return "is stored as a sparse file: make the tar without --sparse"
    if member.islnk() or member.issym():
        return f"is a link to {member.linkname}: make the tar with --dereference --hard-dereference"
    if member.isreg():
        return ""
    return f"is no ordinary file (type {member.type!r})"
