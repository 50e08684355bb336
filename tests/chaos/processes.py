"""Programs under test: started, watched for standing still, killed, and looked for once they should be gone."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.forks import Forked

QUIET_SECONDS = 120.0  # without output, new files or work: it hangs
IDLE_CPU = 0.02  # of one CPU; a Ray that waits takes about 1 %
MARK = "TLRAY_CHAOS"  # in the environment of everything that a round starts


@dataclass(frozen=True)
class Program:
    """A command of tlray's, whose output goes to a file."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | Forked
    log: Path
    mark: str
    limit: float  # seconds that it may take in all
    cluster: Path | None  # the folder of the cluster that it joins; None where it starts a Ray of its own

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def all_processes(self) -> list[psutil.Process]:
        """Its own and those that work for it, the command itself first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = [psutil.Process(self.process.pid)] if self.is_running else []
            own += [process for process in marked(self.mark) if process.pid != self.process.pid]
            return own + (of_cluster(self.cluster) if self.cluster is not None else [])
        return []


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    largest_file: int | None = None,
) -> subprocess.Popen[bytes]:
    """The command as a user starts it.

    `largest_file`: bytes that a file of this process, and of none that Ray starts for it, may have.
    """

    def restrict() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tlray.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=restrict,
        )


def catches(program: Program, number: int) -> bool:
    """Whether the command has a handler for the signal. Before its first instruction it has none for SIGTERM."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
        caught = next(line for line in status if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


def end_of(program: Program, progress: "ProgressOf") -> int | None:
    """Its exit code; None for one that hangs, which is killed."""
    began = moved = time.monotonic()
    seen, cpu = progress(), _cpu_seconds(program)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return program.process.wait(1.0)
        now = time.monotonic()
        if now - began > program.limit:
            break
        if (found := progress()) != seen:
            seen, moved, cpu = found, now, None
        elif now - moved > QUIET_SECONDS:
            if cpu is not None and _cpu_seconds(program) - cpu < IDLE_CPU * (now - moved):
                break
            moved, cpu = now, _cpu_seconds(program)
        elif cpu is None:
            cpu = _cpu_seconds(program)
    program.process.kill()
    program.process.wait()
    return None


class ProgressOf:
    """What changes while a program gets on: its output, and the names of its files."""

    def __init__(self, program: Program, versions: Callable[[], Mapping[str, object]]) -> None:
        self._program, self._versions = program, versions

    def __call__(self) -> tuple[int, int]:
        return self._program.log.stat().st_size, hash(frozenset(self._versions().items()))


def marked(mark: str) -> list[psutil.Process]:
    """Every process with this mark in its environment, zombies left out."""
    found = []
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def of_cluster(folder: Path) -> list[psutil.Process]:
    """The processes that do the work of a cluster of `tests/ray_clusters.py`, not those of Ray itself."""
    return [process for process in with_words(str(folder)) if is_worker(name_of(process))]


def is_worker(name: str) -> bool:
    return name.startswith("ray::") and "Agent" not in name


def with_words(words: str) -> list[psutil.Process]:
    """Every process whose command line has `words`, with the processes that those have started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        if words in " ".join(process.info["cmdline"] or []):
            with contextlib.suppress(psutil.Error):
                found |= {one.pid: one for one in [process, *process.children(recursive=True)]}
    return list(found.values())


def name_of(process: psutil.Process) -> str:
    """`raylet`, `gcs_server`, `ray::chunk_task`, ...; empty for one that is gone."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    first = command[0] if command else ""
    return first if first.startswith("ray::") else os.path.basename(first)


@contextlib.contextmanager
def halted(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """All of them stand still while the block runs."""
    for process in processes:
        _signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            _signal(process, signal.SIGCONT)


def kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        _signal(process, signal.SIGKILL)


def end_all_of(program: Program) -> None:
    """Whatever there is of it, when the rounds are over or have broken off."""
    if program.is_running:
        kill([*marked(program.mark), psutil.Process(program.process.pid)])
        program.process.wait()


def left_after(seconds: float, mark: str) -> list[psutil.Process]:
    """The marked processes that are still there when they have had this long to end."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.Error, OSError):
        process.send_signal(number)


def _cpu_seconds(program: Program) -> float:
    total = 0.0
    for process in program.all_processes():
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total
