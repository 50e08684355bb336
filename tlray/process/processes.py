"""Which process this is, and whether another one still lives: a number alone may have been given to somebody else.

me = this_process()                       # where, number, start
lives(me) is True                         # None where that cannot be known: another machine or container
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """A process of some machine, told apart from every other one."""

    place: str  # start of the machine and container within which numbers mean something; "" where that is unknown
    number: int
    started: int  # in the kernel's own count, which no correction of a clock moves


def this_process() -> Process:
    started = _started(os.getpid())
    assert started is not None, "this process lives"
    return Process(place=_place(), number=os.getpid(), started=started)


def lives(process: Process) -> bool | None:
    """Whether it still runs; None where this machine cannot know. One that has ended and is not yet reaped does not."""
    if not process.place or process.place != _place():
        return None
    return _started(process.number) == process.started and _state(process.number) not in "ZX"


def is_stopped(process: Process) -> bool:
    """Whether a process of this machine is held by SIGSTOP or a debugger."""
    return _state(process.number) in "Tt"


def _started(number: int) -> int | None:
    fields = _stat(number)
    if fields is not None:
        return int(fields[19])
    try:
        return round(1000 * psutil.Process(number).create_time()) if not Path("/proc/self/stat").exists() else None
    except psutil.Error:
        return None


def _state(number: int) -> str:
    fields = _stat(number)
    return fields[0] if fields is not None else "?"


def _stat(number: int) -> list[str] | None:
    """The fields of /proc/<number>/stat behind the command's name, which may itself hold blanks and brackets."""
    try:
        return Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


@cache
def _place() -> str:
    try:
        return f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
