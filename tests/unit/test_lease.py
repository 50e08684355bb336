"""One holder for each run: who is second is told, who was killed holds nothing, who was paused too long stops.

Run: python -m pytest tests/unit/test_lease.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tlray.cli import main
from tlray.config import RunConfig
from tlray.config.search_space import list_trials
from tlray.data.manifest import make_manifest
from tlray.errors import HeldElsewhere
from tlray.process.processes import Process, lives, this_process
from tlray.runs import lease as leases
from tlray.runs.lease import hold, hold_run
from tlray.runs.plan import Plan, PlannedRun
from tlray.runs.prepare import prepare_run

HOLDER = """
import sys, time
from tlray.runs import lease
lease.RENEW_SECONDS = float(sys.argv[2])
try:
    with lease.hold_run(sys.argv[1], "tlray run"):
        print("held", flush=True)
        time.sleep(600)
except BaseException as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(7)
"""


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    """What a command looks for before it asks for the lease."""
    for name in ("config.yaml", "manifest.parquet"):
        (tmp_path / name).write_text("")
    return str(tmp_path)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_holder(run_uri: str) -> Iterator[Start]:
    """Starts a process that holds the run."""
    with ExitStack() as stack:

        def start(renew_seconds: float = 0.1) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", HOLDER, run_uri, str(renew_seconds)]
            holder = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            return holder

        yield start


def prepare(run_uri: str, image_folder: Path) -> None:
    """Make it a run whose first trial has not begun."""
    for path in Path(run_uri).iterdir():
        path.unlink()
    fields = {"name": "x", "data": {"train": str(image_folder), "val_fraction": 0.25}, "backbones": ["timm/resnet18"]}
    config = RunConfig.model_validate(fields)
    nothing = {"num_images": {}, "num_bad_images": 0, "total_epochs": 0, "total_image_passes": 0}
    plan = Plan(name="x", num_classes=3, trials=(), **nothing)
    prepare_run(PlannedRun(config, make_manifest(config.data), tuple(list_trials(config)), plan), run_uri)


def write_lease(run_uri: str, **fields: Any) -> Path:
    """Of this process and machine, but for `fields`."""
    me = this_process()
    lease = {"by": "tlray run", "host": "h", "process": me.number, "since": 0.0, "place": me.place, "released": False}
    path = Path(run_uri, "lease.json")
    path.write_text(json.dumps({**lease, "started": me.started, "mark": "x", **fields}))
    return path


@pytest.mark.parametrize("command", ["resume", "export"])
def test_a_second_command_on_a_run_is_told_who_holds_it_and_exits_with_three(
    run_uri: str, start_holder: Start, command: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(run_uri, image_folder)
    holder = start_holder()
    before = sorted(path.name for path in Path(run_uri).glob("[!.]*"))
    with pytest.raises(SystemExit) as ended:
        main([command, run_uri])
    assert ended.value.code == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    who = f"error: tlray run is at work here already (process {holder.pid} on {socket.gethostname()} since 20"
    assert error.startswith(who)
    assert sorted(path.name for path in Path(run_uri).glob("[!.]*")) == before
    assert holder.poll() is None


def test_a_holder_that_was_killed_frees_the_run_at_once_also_before_it_is_reaped(
    run_uri: str, start_holder: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody waits for a dead process"))
    holder = start_holder()
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    with hold_run(run_uri, "tlray resume") as held:
        held.check()


def test_a_number_given_to_another_process_holds_nothing(run_uri: str) -> None:
    me = this_process()
    write_lease(run_uri, process=1)  # it lives, and was started at another time
    assert lives(Process(place=me.place, number=1, started=me.started)) is False
    with hold_run(run_uri, "tlray resume") as held:
        held.check()


def test_a_holder_that_was_stopped_loses_the_run_and_stops_its_work_when_it_wakes_up(
    run_uri: str, start_holder: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.05)
    holder = start_holder()
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    with hold_run(run_uri, "tlray resume") as held:
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(60) == 7
        assert holder.stdout is not None
        assert holder.stdout.read().startswith(f"TrialError {run_uri}/lease.json: another process has taken over")
        held.renew()
        held.check()


ELSEWHERE = "another start of another machine"


def test_a_holder_elsewhere_that_goes_silent_is_taken_for_dead_by_the_watchers_own_clock(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.02)
    write_lease(run_uri, place=ELSEWHERE, since=time.time() + 10**6)  # its clock is wrong by days
    started = time.monotonic()
    with hold(f"{run_uri}/lease.json", "tlray resume", lease_seconds=0.5) as held:
        assert time.monotonic() - started >= 0.5
        held.check()


def test_a_holder_elsewhere_that_lives_is_believed(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lease(run_uri, place=ELSEWHERE, process=123, host="far")
    looks = iter(range(100))

    def sleep(seconds: float) -> None:
        if next(looks) == 3:
            path.write_text(path.read_text().replace('"x"', '"y"'))

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(HeldElsewhere, match="process 123 on far since 1970"), hold_run(run_uri, "tlray resume"):
        pass
    assert next(looks) == 4


def test_a_run_is_free_after_its_holder_has_ended_well_or_with_an_error(run_uri: str) -> None:
    with pytest.raises(ValueError, match="broken"), hold_run(run_uri, "tlray run"):
        raise ValueError("broken")
    for _ in range(2):
        with hold_run(run_uri, "tlray resume") as held:
            held.check()
    assert json.loads(Path(run_uri, "lease.json").read_text())["released"] is True


def test_a_resume_of_what_is_no_run_leaves_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(tmp_path / "nope")])
    assert ended.value.code == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert not (tmp_path / "nope").exists()
