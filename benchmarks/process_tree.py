"""Runs a program and says what it, and everything that it started, has cost: CPU seconds, wall seconds, memory.

    usage = run_measured([sys.executable, "-m", "benchmarks.programs.script", "work.json"])
    usage.cpu_seconds, usage.wall_seconds, usage.peak_bytes, usage.last_line

Resource usage of children is not enough: a process that ignores SIGCHLD, as Ray's raylet does, loses its children's,
and daemons leave the tree. So this process adopts orphans (PR_SET_CHILD_SUBREAPER, Linux) and looks at all descendants
20 times a second; what a process uses between the last look and its end is missed.
"""

import contextlib
import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
INTERVAL = 0.05  # seconds


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


class _Tree:
    """The descendants of this process, as last seen."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self.cpu: dict[tuple[int, float], float] = {}
        self.names: dict[tuple[int, float], str] = {}
        self.peaks: dict[str, int] = {}

    def look(self) -> list[psutil.Process]:
        alive = self._me.children(recursive=True)
        for process in alive:
            with contextlib.suppress(psutil.Error, FileNotFoundError, ProcessLookupError):
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
                name = self.names[process.pid, process.create_time()] = process.name()
                self.peaks[name] = max(self.peaks.get(name, 0), _peak_bytes(process.pid))
        return alive

    def end(self) -> None:
        """Kill and bury what the program left behind."""
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end and count; RuntimeError with the end of its output when it fails."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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
        while program.poll() is None:
            tree.look()
            time.sleep(INTERVAL)
        wall = time.perf_counter() - started
        tree.end()
        text = Path(output.name).read_text(errors="replace")
    if program.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {program.returncode}:\n{text[-4000:]}")
    by_name: dict[str, float] = {}
    for key, seconds in tree.cpu.items():
        by_name[tree.names[key]] = by_name.get(tree.names[key], 0.0) + seconds
    return Usage(sum(tree.cpu.values()), wall, by_name, tree.peaks, text)


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
