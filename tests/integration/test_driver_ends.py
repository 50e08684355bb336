"""A command whose Ray dies, or that is stopped while Ray starts: one line, the right exit code, nothing left behind.

The commands are small programs that go through the same door as all of tlray's: `own_process` and `connect`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent
WORKS = """
import time
from tlray.process.ending import interruptible, own_process

def work():
    with interruptible("`tlray resume RUN` goes on"):
        import ray
        from tlray.distributed.cluster import connect
        print("connecting", flush=True)
        connect()

        @ray.remote(num_cpus=0)
        def forever():
            time.sleep(1000)

        waiting = [forever.remote() for _ in range(2)]
        ray.wait(waiting, timeout=3)
        print("working", flush=True)
        ray.get(waiting)

own_process(work)
"""


class Command:
    """One of the programs, with a folder of its own for all that Ray writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKS],
            env={**environment, "RAY_TMPDIR": str(folder)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: set[psutil.Process] = set()

    def until(self, line: str) -> None:
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said == f"{line}\n":
                return
        raise AssertionError(self.process.communicate()[1])

    def until_it_runs(self, name: str) -> psutil.Process:
        while self.process.poll() is None:
            for process in self.look():
                if process.name() == name:
                    return process
            time.sleep(0.05)
        raise AssertionError(self.process.communicate()[1])

    def look(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.seen if process.is_running()}

    def end(self) -> tuple[int, list[str]]:
        """Exit code and what it said on stderr, once nothing is left of it."""
        _, errors = self.process.communicate(timeout=120)
        _, left = psutil.wait_procs(self.seen, timeout=10)
        assert left == []
        assert list(self.folder.iterdir()) == []
        return self.process.returncode, errors.splitlines()


@pytest.fixture
def command() -> Iterator[Command]:
    with tempfile.TemporaryDirectory(prefix="e-") as folder:  # short: sockets lie in it
        running = Command(Path(folder))
        yield running
        running.process.kill()
        running.process.communicate()
        for process in running.seen:
            if process.is_running():
                process.kill()


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_part_of_ray_that_dies_ends_the_command_with_its_name_and_the_way_to_go_on(
    part: str, command: Command
) -> None:
    command.until("working")
    command.until_it_runs(part).kill()
    code, errors = command.end()
    assert code == 1
    assert (
        errors[-1] == f"error: Ray's {part} (killed by signal 9) on this machine has died; `tlray resume RUN` goes on"
    )
    said_by_ray = [line for line in errors[:-1] if ".cc:" in line]  # its compiled code, one line for a lost task
    assert errors[:-1] == said_by_ray


def _once(number: signal.Signals) -> Callable[[Command], None]:
    return lambda command: command.process.send_signal(number)


def _twice(command: Command) -> None:
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    command.process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("part", "send", "name"),
    [
        ("gcs_server", _once(signal.SIGTERM), "SIGTERM"),
        ("gcs_server", _twice, "SIGINT"),
        ("raylet", _once(signal.SIGHUP), "SIGHUP"),
        ("raylet", _once(signal.SIGINT), "SIGINT"),
    ],
)
def test_a_signal_while_ray_starts_ends_the_command_with_130_and_leaves_nothing(
    part: str, send: Callable[[Command], None], name: str, command: Command
) -> None:
    command.until("connecting")
    command.until_it_runs(part)
    send(command)
    command.look()
    code, errors = command.end()
    assert (code, errors) == (130, [f"error: interrupted by {name}; `tlray resume RUN` goes on"])
