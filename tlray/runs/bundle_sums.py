"""SHA256SUMS of an export bundle: what its files must hash to, and whether they do. Neither torch nor Ray here.

    sums = read_checksums("s3://bucket/run/exports/1-resnet50")
    data = read_verified(uri, "config.json", sums)

SHA256SUMS is written last, so a folder that has it was whole once; `sha256sum -c SHA256SUMS` checks it without tlray.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from tlray import storage
from tlray.errors import DataError
from tlray.storage.locations import CHECKSUMS as CHECKSUMS

WEIGHTS, ONNX, PROGRAM = "model.safetensors", "model.onnx", "model.pt2"
CONFIG, METRICS, CARD = "config.json", "metrics.json", "MODEL_CARD.md"
FILES = (WEIGHTS, ONNX, PROGRAM, CONFIG, METRICS, CARD)  # what a whole bundle lists

LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9_.-]+)")


def checksum_lines(folder: Path) -> str:
    """Text of SHA256SUMS for every file of a local folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)


def read_checksums(uri: str) -> dict[str, str]:
    """File name -> sha256 of a bundle; DataError, which names what is missing, when the folder is not a whole one."""
    sums_uri = storage.join(uri, CHECKSUMS)
    if not storage.exists(sums_uri):
        missing = [name for name in (CONFIG, WEIGHTS, CHECKSUMS) if not storage.exists(storage.join(uri, name))]
        raise DataError(f"{uri} is not an export bundle: it has no {', '.join(missing)}; `tlray export RUN` writes one")
    lines = storage.read_bytes(sums_uri).decode(errors="replace").splitlines()
    checksums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{sums_uri} is corrupted in line {number}: copy or export the model again")
        checksums[match[2]] = match[1]
    unlisted = [name for name in (CONFIG, WEIGHTS) if name not in checksums]
    if unlisted:
        raise DataError(f"{sums_uri} does not list {', '.join(unlisted)}: copy or export the model again")
    return checksums


def read_verified(uri: str, name: str, checksums: Mapping[str, str]) -> bytes:
    """Bytes of a bundle's file; DataError when they are not those that were exported."""
    location = storage.join(uri, name)
    if name not in checksums:
        raise DataError(f"{storage.join(uri, CHECKSUMS)} does not list {name}: copy or export the model again")
    try:
        data = storage.read_bytes(location)
    except storage.NotFoundError:
        raise DataError(f"{uri} is not a whole export bundle: it has no {name}; copy or export it again") from None
    if hashlib.sha256(data).hexdigest() != checksums[name]:
        raise DataError(f"{location} is corrupted: its sha256 is not that of {CHECKSUMS}; copy or export it again")
    return data


def check_whole(uri: str) -> None:
    """Read every file of a bundle; DataError for the first that is missing, not listed or damaged."""
    checksums = read_checksums(uri)
    for name in sorted({*FILES, *checksums}):
        read_verified(uri, name, checksums)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
