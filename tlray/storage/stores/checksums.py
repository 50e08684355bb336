"""Whether a file is the one that was written: read in whole once, and again only when it changes.

with open(path, "rb") as file:
    is_sound(file, size, sha256)                        # remembered by this process
    is_sound(file, size, sha256, notes=folder)          # and by all others of the node, until it starts anew
"""

import hashlib
import os
import shutil
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Identity = tuple[int, int, int, int, str]  # device, inode, time of the last change, size; what it should hash to
_verified: set[Identity] = set()


def is_sound(file: BufferedReader, size: int, sha256: str, notes: Path | None = None) -> bool:
    """Whether the file has this size and checksum. `notes`: a folder, for nothing else, in which processes tell each
    other what is sound.

    Reading takes 0.6 ms a megabyte, which is little against an epoch, and much where each of many processes does it.
    """
    status = os.fstat(file.fileno())
    if status.st_size != size:
        return False
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, sha256)
    if identity in _verified:
        return True
    note = None if notes is None else notes / _boot_id() / hashlib.sha256(repr(identity).encode()).hexdigest()
    if note is None or not note.exists():
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:  # in pieces, not through a map
            return False
        if note is not None:
            _write_note(note)
    _verified.add(identity)
    return True


def _write_note(note: Path) -> None:
    """Leave a file for the others; the first since the node started removes what was noted before."""
    with suppress(OSError):  # without a note the others read the file too
        if not note.parent.exists():
            for outdated in note.parent.parent.glob("*/"):
                shutil.rmtree(outdated, ignore_errors=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


@cache
def _boot_id() -> str:
    """After a power failure a file of the right size and time may hold zeros: what was found before counts no more."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else "unknown"
