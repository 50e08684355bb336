"""The measuring of whole process trees, against what the processes say of themselves.

Everything burns CPU for a stated time by its own clock; the measurement is right when it finds the same sum.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.process_tree import run_measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

BURN = """
import os, sys, time
while time.process_time() < float(sys.argv[1]):
    pass
open(os.path.join(sys.argv[2], str(os.getpid())), "w").write(str(time.process_time()))
time.sleep(float(sys.argv[3]))
"""
# Like a raylet: nobody waits for its children, the kernel buries them, and their usage is added to nothing.
IGNORES_ITS_CHILDREN = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
children = [subprocess.Popen([sys.executable, *sys.argv[1:]]) for _ in range(3)]
for child in children:
    child.wait()
"""
TOLERANCE = 0.25  # seconds a process: 20 looks a second, ticks of 10 ms, and the interpreter's own end


@pytest.fixture
def burner(tmp_path: Path) -> str:
    script = tmp_path / "burn.py"
    script.write_text(BURN)
    (tmp_path / "burnt").mkdir()
    return f"{sys.executable} -S {script}"


def burnt(folder: Path) -> list[float]:
    """CPU seconds as the processes have measured them."""
    return [float(path.read_text()) for path in (folder / "burnt").iterdir()]


def test_the_cpu_time_of_a_program_and_of_its_children_is_found(burner: str, tmp_path: Path) -> None:
    line = f"{burner} 0.4 {tmp_path}/burnt 0 & {burner} 0.3 {tmp_path}/burnt 0; wait; echo done"
    usage = run_measured(["sh", "-c", line])
    own = burnt(tmp_path)
    assert len(own) == 2
    assert usage.cpu_seconds == pytest.approx(sum(own), abs=2 * TOLERANCE)
    assert sum(usage.cpu_by_name.values()) == pytest.approx(usage.cpu_seconds)
    assert usage.last_line == "done"


def test_daemons_that_outlive_the_program_are_counted_and_then_ended(burner: str, tmp_path: Path) -> None:
    """The daemon has a session of its own and a dead parent, and sleeps on for minutes."""
    waits = f'while [ -z "$(ls {tmp_path}/burnt)" ]; do sleep 0.1; done'
    usage = run_measured(["sh", "-c", f"(setsid {burner} 0.4 {tmp_path}/burnt 600 &) ; {waits}"])
    (daemon,) = (tmp_path / "burnt").iterdir()
    assert usage.cpu_seconds >= 0.4 - TOLERANCE
    assert not psutil.pid_exists(int(daemon.name))


def test_children_of_a_process_that_ignores_their_end_are_counted(burner: str, tmp_path: Path) -> None:
    script = tmp_path / "ignores.py"
    script.write_text(IGNORES_ITS_CHILDREN)
    usage = run_measured([sys.executable, str(script), *burner.split()[1:], "0.3", f"{tmp_path}/burnt", "0"])
    own = burnt(tmp_path)
    assert len(own) == 3
    # the parent is Python too, and burns what it takes to start
    assert sum(own) - 3 * TOLERANCE <= usage.cpu_seconds <= sum(own) + 4 * TOLERANCE


def test_processes_that_were_there_before_are_neither_counted_nor_ended(tmp_path: Path) -> None:
    endless = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        usage = run_measured(["sleep", "1"])
        assert usage.cpu_seconds < TOLERANCE
        assert set(usage.cpu_by_name) == {"sleep"}
        assert endless.poll() is None
    finally:
        endless.kill()
        endless.wait()


def test_peak_memory_is_that_of_the_largest_process_of_a_name() -> None:
    size = 64 * 2**20
    usage = run_measured([sys.executable, "-S", "-c", f"import time; held = b'x' * {size}; time.sleep(0.5)"])
    (peak,) = (bytes_ for name, bytes_ in usage.peak_bytes.items() if name.startswith("python"))
    assert size <= peak < 2 * size


def test_a_program_that_fails_says_so_with_the_end_of_its_output() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\s+the reason"):
        run_measured(["sh", "-c", "echo the reason >&2; exit 3"])


def test_variables_of_the_environment_are_added_to_those_there_are() -> None:
    usage = run_measured(["sh", "-c", 'echo "$ADDED $HOME"'], {"ADDED": "one"})
    assert usage.last_line == f"one {os.environ.get('HOME', '')}".strip()
