"""Runs a program and says what it, and everything that it started, has cost: CPU seconds, wall seconds, memory.

    usage = run_measured([sys.executable, "-m", "benchmarks.programs.script", "work.json"])
    usage.cpu_seconds, usage.wall_seconds, usage.peak_bytes, usage.last_line

Resource usage of children is not enough: a process that ignores SIGCHLD, as Ray's raylet does, loses its children's,
and daemons leave the tree. So this process adopts orphans (PR_SET_CHILD_SUBREAPER, Linux) and looks at all descendants
20 times a second. What a process uses between the last look and its end is missed where its parent is quick to bury it;
of the program itself, and of orphans, nothing is. Looking straight into /proc costs a sixth of what psutil's walk over
all processes does, which would be 6 % of a core with Ray running.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
INTERVAL = 0.05  # seconds
LOOKS_PER_PEAK = 4  # memory is read less often: the kernel remembers its peak
TICKS = os.sysconf("SC_CLK_TCK")
COMM_LENGTH = 15  # what the kernel keeps of a name


@dataclass(frozen=True)
class Usage:
    """What a program cost."""

    cpu_seconds: float  # user and system, of all its processes
    wall_seconds: float
    cpu_by_name: dict[str, float]  # by what a process called itself last
    peak_bytes: dict[str, int]  # likewise: most resident memory (VmHWM) of any of that name
    output: str

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1]


@dataclass(frozen=True)
class _Stat:
    """What /proc/PID/stat says."""

    pid: int
    parent: int
    started: int  # ticks since boot; tells a process from a later one with its number
    cpu: float  # seconds; of a zombie the final figure
    name: str
    zombie: bool


class _Tree:
    """Those descendants of this process that it did not have when this was made, as last seen."""

    def __init__(self) -> None:
        self._others = set(_pids())
        self._num_looks = 0
        self.cpu: dict[tuple[int, int], float] = {}
        self.names: dict[tuple[int, int], str] = {}
        self.peaks: dict[str, int] = {}
        self._comms: dict[tuple[int, int], str] = {}

    def look(self) -> list[int]:
        """Note what every process has used -> their numbers, zombies included."""
        listed = set(_pids())
        self._others &= listed  # so that a number that is used again is looked at
        found = {stat.pid: stat for pid in listed - self._others if (stat := _read_stat(pid)) is not None}
        ours = [stat for stat in found.values() if _descends(stat, found)]
        self._others |= found.keys() - {stat.pid for stat in ours}
        wants_peaks = self._num_looks % LOOKS_PER_PEAK == 0
        self._num_looks += 1
        for stat in ours:
            key = stat.pid, stat.started
            self.cpu[key] = stat.cpu
            renamed = self._comms.get(key) != stat.name
            if not stat.zombie and (renamed or wants_peaks):
                self._comms[key] = stat.name
                self.names[key] = name = _full_name(stat)
                self.peaks[name] = max(self.peaks.get(name, 0), _peak_bytes(stat.pid))
            self.names.setdefault(key, stat.name)
        return [stat.pid for stat in ours]

    def end(self) -> None:
        """Kill and bury what the program left behind."""
        while left := self.look():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):  # not an orphan yet: its parent is killed first
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(INTERVAL / 10)


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end and count; RuntimeError with the end of its output when it fails.

    Processes that other threads of this one start meanwhile would be counted, and killed at the end.
    """
    _adopt_orphans(True)
    tree = _Tree()
    with tempfile.NamedTemporaryFile() as output:
        started = time.perf_counter()
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            # it stays a zombie until it has been looked at once more
            while os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                tree.look()
                time.sleep(INTERVAL)
            wall = time.perf_counter() - started
            tree.look()
            program.wait()
        finally:
            tree.end()
            _adopt_orphans(False)
        text = Path(output.name).read_text(errors="replace")
    if program.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {program.returncode}:\n{text[-4000:]}")
    by_name: dict[str, float] = {}
    for key, seconds in tree.cpu.items():
        by_name[tree.names[key]] = by_name.get(tree.names[key], 0.0) + seconds
    return Usage(sum(tree.cpu.values()), wall, by_name, tree.peaks, text)


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_stat(pid: int) -> _Stat | None:
    """None when the process has gone. A name may hold spaces and brackets, so fields are counted from its end."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()  # the first is field 3 of proc(5)
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    return _Stat(pid, int(fields[1]), int(fields[19]), cpu, name, fields[0] == "Z")


def _descends(stat: _Stat, found: Mapping[int, _Stat]) -> bool:
    me = os.getpid()
    while stat.parent != me:
        if stat.parent not in found:
            return False
        stat = found[stat.parent]
    return True


def _full_name(stat: _Stat) -> str:
    """The kernel cuts names short; the command line has the rest where the process has set its title."""
    if len(stat.name) < COMM_LENGTH:
        return stat.name
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        title = Path(f"/proc/{stat.pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
        if Path(title).name.startswith(stat.name):
            return Path(title).name
    return stat.name


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
