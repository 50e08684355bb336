"""A disk with too little room: a small file system of its own where that may be mounted, else a limit on file sizes."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.chaos.reference import Snapshot
from tests.chaos.rounds import Round

PAGE = 2**12  # what a file takes at least


@contextmanager
def small_disk(round: Round, snapshot: Snapshot | None, room: int) -> Iterator[dict[str, Any]]:
    """The round begins at `snapshot` with `room` bytes left; afterwards its files lie where there is room.

    Yields what `Round.launch` needs. A limit on sizes binds the driver only, not the processes that Ray starts.
    """
    live = round.setting.live
    needed = _bytes_of(snapshot) + 64 * PAGE
    if not _mounted(f"size={needed + room}", str(live)):
        round.begin(snapshot)
        yield {"largest_file": max(room, PAGE)}
        return
    aside = round.setting.folder / "aside"
    try:
        round.begin(snapshot)
        yield {}
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(live, aside)
    finally:
        subprocess.run(["umount", "--lazy", str(live)], check=True)
    shutil.rmtree(live)
    shutil.copytree(aside, live)


def _mounted(options: str, folder: str) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _bytes_of(snapshot: Snapshot | None) -> int:
    """In whole pages, the folders too."""
    if snapshot is None:
        return 0
    paths = list(snapshot.folder.rglob("*"))
    return sum(PAGE * -(-path.stat().st_size // PAGE) if path.is_file() else PAGE for path in paths)
