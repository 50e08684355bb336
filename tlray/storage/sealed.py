"""Files that prove themselves: JSON with its own checksum, and bytes whose checksum stands in such a document.

    write_document(uri, {"epoch": 3});  content = read_document(uri, "start the trial again")
    checksum = write_checked(uri, data);  data = read_checked(uri, checksum, "train the epoch again")

The checksum is the last field of a document and covers every other byte of it. So it is verified before anything is
parsed, and a reader never acts upon what nobody wrote. A file that is not what was written is a DamagedError, which
says what to do; one that is not there is a NotFoundError.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tlray import storage
from tlray.errors import DamagedError

FIELD = "sha256"
LENGTH = 64  # hexadecimal digits


def checksum_of(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(content: Mapping[str, Any], indent: int | None = None) -> str:
    """The content as a JSON object that ends with its checksum."""
    text = json.dumps({**content, FIELD: ""}, indent=indent)
    place = text.rindex('"')
    return text[:place] + checksum_of(text.encode()) + text[place:]


def unsealed(text: str) -> dict[str, Any]:
    """The content of what `sealed` made; ValueError when a single bit is another."""
    end = text.rfind('"')
    start = end - LENGTH
    if start < 0 or checksum_of((text[:start] + text[end:]).encode()) != text[start:end]:
        raise ValueError("its checksum is not that of its content")
    content: dict[str, Any] = storage.parse_json(text)
    del content[FIELD]
    return content


def write_document(uri: str, content: Mapping[str, Any]) -> None:
    storage.write_text(uri, sealed(content, indent=1))


def read_document(uri: str, remedy: str) -> dict[str, Any]:
    return parse_document(storage.read_bytes(uri), uri, remedy)


def parse_document(data: bytes, uri: str, remedy: str) -> dict[str, Any]:
    """The content of a document whose bytes have been read already."""
    try:
        return unsealed(data.decode())
    except ValueError:  # a UnicodeDecodeError is one too
        raise DamagedError.of(uri, remedy) from None


def write_checked(uri: str, data: bytes | memoryview) -> str:
    """Write a file -> its checksum, for the document that names it."""
    storage.write_bytes(uri, data)
    return checksum_of(data)


def read_checked(uri: str, checksum: str, remedy: str) -> bytes:
    data = storage.read_bytes(uri)
    if checksum_of(data) != checksum:
        raise DamagedError.of(uri, remedy)
    return data


def is_whole(uri: str, checksum: str) -> bool:
    """Whether the file is there and is the one that was written."""
    try:
        return checksum_of(storage.read_bytes(uri)) == checksum
    except storage.NotFoundError:
        return False
