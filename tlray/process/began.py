"""When the user started the command, and how busy the machine is.

began = command_began()      # on the scale of time.monotonic()
"""

import os
import time
from pathlib import Path

from tlray.process.ending import owns_process

_IMPORTED = time.monotonic()
LOOK = 0.2  # seconds of computing; the kernel's turns are some milliseconds


def command_began() -> float:
    """The start of this process where it is a command's own; else, in a notebook or a test, this moment."""
    return process_began() if owns_process() else time.monotonic()


def load(seconds: float = LOOK) -> float:
    """How much longer than on an idle machine one thread takes now for what it computes; at least 1."""
    started, computed = time.perf_counter(), time.thread_time()
    while time.thread_time() - computed < seconds:
        pass
    return max(1.0, (time.perf_counter() - started) / seconds)


def process_began() -> float:
    """Seconds of `time.monotonic()`, to a hundredth; without Linux' /proc, when this module was imported."""
    try:
        # Fields from the third on: the second, the program's name, may hold spaces. See proc_pid_stat(5).
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except OSError:
        return _IMPORTED
