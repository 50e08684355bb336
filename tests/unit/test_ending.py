"""A command's process ends with one line and the right exit code, whatever it was doing when a signal came."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
START = """
from tlray.process.ending import at_hard_end, interruptible, own_process, stop
import tlray.process.ending, os, sys, time
"""


def started(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that says `ready` on its first line when the signal may come."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + program, *arguments] if program else [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", line + process.communicate()[1]
    return process


def ended(process: subprocess.Popen[str], *signals: signal.Signals) -> tuple[int, list[str]]:
    for number in signals:
        process.send_signal(number)
    with process:  # closes what it wrote to
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines()


WORK = """
def work():
    with interruptible("`tlray resume RUN` goes on"):
        print("ready", flush=True)
        time.sleep(60)
own_process(work)
"""
HANGS_ON_THE_WAY_OUT = """
def work():
    with interruptible("`tlray resume RUN` goes on"):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("leaving", flush=True)
            time.sleep(60)
at_hard_end(lambda: os.rmdir(sys.argv[1]))
own_process(work)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work_with_130_and_one_line_that_says_how_to_go_on(number: signal.Signals) -> None:
    code, errors = ended(started(WORK), number)
    assert code == 130
    assert errors == [f"error: interrupted by {number.name}; `tlray resume RUN` goes on"]


def test_a_signal_while_the_command_is_still_being_imported_ends_it_in_one_line(tmp_path: Path) -> None:
    """A stand-in for the first library that the command imports says when that is, and takes its time."""
    (tmp_path / "typer.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    process = started("", "-m", "tlray", "models", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert ended(process, signal.SIGTERM) == (130, ["error: interrupted by SIGTERM"])


@pytest.mark.parametrize("job", ["sweep", "predict", "rank", "features", "retrain", "train_local"])
def test_a_job_answers_signals_like_the_command(job: str, tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "rich.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "typer.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    given = {"predict": ["--model", "m", "--images", "i", "--output", "o"]}.get(job, ["--config", "c.yaml"])
    process = started("", str(ROOT / "jobs" / f"{job}.py"), *given, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert ended(process, signal.SIGTERM) == (130, ["error: interrupted by SIGTERM"])


def test_a_second_signal_ends_what_hangs_on_the_way_out_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    process = started(HANGS_ON_THE_WAY_OUT, str(tmp_path / "scratch"))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "leaving\n"
    assert ended(process, signal.SIGINT) == (130, ["error: interrupted by SIGINT; `tlray resume RUN` goes on"])
    assert not (tmp_path / "scratch").exists()


def test_what_hangs_on_the_way_out_is_ended_after_the_grace(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    process = started(f"tlray.process.ending.GRACE = 1.0\n{HANGS_ON_THE_WAY_OUT}", str(tmp_path / "scratch"))
    code, errors = ended(process, signal.SIGTERM)
    assert (code, errors) == (130, ["error: interrupted by SIGTERM; `tlray resume RUN` goes on"])
    assert not (tmp_path / "scratch").exists()


def test_a_stop_that_a_library_swallows_is_carried_out_all_the_same() -> None:
    process = started("""
tlray.process.ending.GRACE = 1.0
def work():
    with interruptible("start it again"):
        print("ready", flush=True)
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
own_process(work)
""")
    assert ended(process, signal.SIGTERM) == (130, ["error: interrupted by SIGTERM; start it again"])


def test_a_signal_in_a_destructor_is_no_traceback() -> None:
    process = started("""
tlray.process.ending.GRACE = 1.0
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
def work():
    slow = Slow()
    del slow
    time.sleep(60)
own_process(work)
""")
    assert ended(process, signal.SIGTERM) == (130, ["error: interrupted by SIGTERM"])


def test_a_signal_while_libraries_end_says_that_the_work_was_done() -> None:
    process = started("""
import atexit
def last():
    print("ready", flush=True)
    time.sleep(3)
atexit.register(last)
own_process(lambda: None)
""")
    assert ended(process, signal.SIGHUP) == (130, ["error: interrupted by SIGHUP; its work was done"])


def test_an_undisturbed_end_keeps_its_exit_code_its_output_and_runs_what_is_registered() -> None:
    process = started("""
import atexit
atexit.register(print, "at exit")
def work():
    print("ready")
    print("done")
    sys.exit(3)
own_process(work)
""")
    assert process.stdout is not None
    assert process.stdout.read() == "done\nat exit\n"
    assert ended(process) == (3, [])


def test_a_watching_thread_ends_a_process_whose_main_thread_is_in_a_call_that_does_not_return() -> None:
    process = started("""
import threading
tlray.process.ending.GRACE = 1.0
def work():
    with interruptible("`tlray resume RUN` goes on"):
        threading.Thread(target=lambda: (print("ready", flush=True), stop(1, "the raylet has died"))).start()
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
own_process(work)
""")
    assert ended(process) == (1, ["error: the raylet has died; `tlray resume RUN` goes on"])


def test_a_bug_is_a_traceback_and_exit_code_1() -> None:
    code, errors = ended(
        started("""
def work():
    print("ready", flush=True)
    raise RuntimeError("a bug")
own_process(work)
""")
    )
    assert code == 1
    assert errors[0].startswith("Traceback")
    assert errors[-1] == "RuntimeError: a bug"


def test_a_tree_of_processes_ends_with_those_whose_parent_has_died_and_without_others() -> None:
    process = started("""
import subprocess
from tlray.process.process_tree import ProcessTree
other = subprocess.Popen(["sleep", "60"])
tree = ProcessTree()
parent = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
child = int(parent.stdout.readline())
tree.look()
parent.kill()
parent.wait()
print("ready", flush=True)
tree.kill()
print(other.poll(), child, flush=True)
other.kill()
""")
    assert process.stdout is not None
    alive, child = process.stdout.read().split()
    assert ended(process) == (0, [])
    assert alive == "None"
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
