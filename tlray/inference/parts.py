"""All images of a prediction on local disk, cut into parts that are computed and written whole.

    listing = write_parts(stream_inputs(images), path)
    for number, name in enumerate(listing.names): listing.read(number)      # columns uri, version, error

A part is named by the images in it and their versions. Where a part ends depends on the names around its end alone
(content-defined chunking: Muthitacharoen et al., A Low-bandwidth Network File System, SOSP 2001, section 3.1): images
that are added, removed or replaced later change the parts that they lie in, and no others.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.storage import FileInfo, parquet

FEWEST, MOST = 1024, 4096  # images of a part; what a kill costs each worker, and what a new image costs to add
ONE_IN = 1024  # images beyond the fewest ends a part, on average
NAME_DIGITS = 32
SCHEMA = pa.schema([("uri", pa.string()), ("version", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class Listing:
    """The parts, in the order of their images; their names are all that is in memory."""

    path: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]  # images of each

    @property
    def num_images(self) -> int:
        return sum(self.sizes)

    def read(self, number: int) -> pa.Table:
        """The images of one part: uri, version ("" where none was listed), error (null, or why not to read it)."""
        with parquet.open_file(self.path) as file:
            return parquet.read_row_group(file, number)


def write_parts(files: Iterator[FileInfo], path: Path) -> Listing:
    """Go through the files once; what they are is written to `path`."""
    names, sizes = [], []
    with pq.ParquetWriter(path, SCHEMA, use_dictionary=["error"]) as writer:
        for part in _cut(files):
            table = _table(part)
            names.append(_name(table))
            sizes.append(len(part))
            writer.write_table(table, row_group_size=MOST)
    return Listing(path, tuple(names), tuple(sizes))


def _cut(files: Iterator[FileInfo]) -> Iterator[list[FileInfo]]:
    part: list[FileInfo] = []
    for info in files:
        part.append(info)
        if len(part) == MOST or (len(part) >= FEWEST and _ends_a_part(info.uri)):
            yield part
            part = []
    if part:
        yield part


def _ends_a_part(uri: str) -> bool:
    return zlib.crc32(uri.encode(errors="surrogateescape")) % ONE_IN == 0


def _table(part: list[FileInfo]) -> pa.Table:
    uris: list[str] = []
    errors: list[str | None] = []
    for info in part:
        try:
            info.uri.encode()
            uris.append(info.uri)
            errors.append(None)
        except UnicodeEncodeError:
            uris.append(info.uri.encode("utf-8", "backslashreplace").decode())
            errors.append("its name is not valid UTF-8")
    columns = [pa.array(uris), pa.array([info.version for info in part]), pa.array(errors, pa.string())]
    return pa.table(columns, schema=SCHEMA)


def _name(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in table.select(["uri", "version"]).columns), strict=True):
        digest.update("\0".join(row).encode() + b"\n")
    return digest.hexdigest()[:NAME_DIGITS]
