"""The clock of a run, on made-up clocks; and what a budget that is too small is answered."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tlray.errors import StorageError
from tlray.process.began import command_began, load, process_began
from tlray.runs.budget.clock import Budget
from tlray.storage.sealed import read_document


class Clock:
    """Stands still but where it is moved."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def move(self, seconds: float) -> None:
        self.seconds += seconds


def test_what_came_before_the_sweep_counts_from_the_start_of_the_command(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(str(tmp_path), limit=100, reserve=10, began=clock() - 25, now=clock)
    assert budget.spent() == 25
    assert budget.left() == 100 - 10 - 25
    clock.move(65)
    assert budget.left() == 0


def test_time_is_counted_over_the_parts_of_an_interrupted_run_and_not_between_them(tmp_path: Path) -> None:
    clock = Clock()
    first = Budget(str(tmp_path), limit=100, reserve=10, now=clock)
    clock.move(60)
    first.leave_out(["b", "a"])
    clock.move(1e6)  # nothing runs
    second = Budget(str(tmp_path), limit=100, reserve=10, began=clock() - 5, now=clock)
    assert second.spent() == 65
    assert second.left() == 25
    assert second.dropped == ("b", "a")


def test_the_time_that_is_spent_is_noted_at_once_and_then_every_few_seconds(tmp_path: Path) -> None:
    clock = Clock()

    def noted() -> float:
        return read_document(str(tmp_path / "budget.json"), "")["spent_seconds"]

    budget = Budget(str(tmp_path), limit=100, began=clock() - 12, now=clock)
    budget.tick()
    assert noted() == 12
    clock.move(3)
    budget.tick()
    assert noted() == 12
    clock.move(3)
    budget.tick()
    assert noted() == 18


def test_a_run_without_a_limit_notes_nothing(tmp_path: Path) -> None:
    budget = Budget(str(tmp_path), limit=math.inf)
    budget.tick()
    assert budget.left() == math.inf
    assert not (tmp_path / "budget.json").exists()


def test_a_damaged_note_of_the_time_is_named(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(StorageError, match=r"budget\.json is damaged"):
        Budget(str(tmp_path), limit=1)


def test_a_machine_that_is_slower_than_planned_needs_more_for_the_end_and_a_faster_one_no_less(tmp_path: Path) -> None:
    clock = Clock()
    slow, fast = (Budget(str(tmp_path), limit=1000, reserve=50, now=clock) for _ in range(2))
    assert slow.pace == 1
    slow.measured(expected=200, taken=600)
    assert 2.5 < slow.pace < 3
    assert slow.left() == pytest.approx(1000 - 50 * slow.pace)
    fast.measured(expected=600, taken=200)
    assert fast.pace == 0.7, "no faster, or little would be left for what is slow after all"
    assert fast.left() == 950
    one = Budget(str(tmp_path), limit=1000, now=clock)
    one.measured(expected=0.1, taken=1.0)
    assert one.pace < 1.1, "a moment of work says little"


def test_a_machine_that_has_become_busier_since_the_plan_needs_more_for_the_end(tmp_path: Path) -> None:
    budget = Budget(str(tmp_path), limit=1000, reserve=50, now=Clock())
    budget.look_at_load(1.8, planned=1.5)
    assert budget.left() == pytest.approx(1000 - 1.2 * 50)
    budget.look_at_load(30.0, planned=1.5)
    assert budget.left() == 1000 - 2 * 50, "a look of a moment"
    assert budget.pace == 1
    budget.look_at_load(1.0, planned=1.5)
    assert budget.left() == 950


def test_what_is_set_aside_for_scoring_is_kept_for_the_end(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(str(tmp_path), limit=100, reserve=10, now=clock)
    budget.set_aside(15)
    assert budget.left() == 75
    clock.move(104)
    assert not budget.is_overrun(0.05)
    clock.move(2)
    assert budget.is_overrun(0.05)


def test_a_command_began_with_its_process_and_in_another_ones_process_it_begins_now() -> None:
    program = (
        "import time; asleep = time.monotonic(); time.sleep(0.3)\n"
        "from tlray.process.began import command_began\n"
        "from tlray.process.ending import own_process\n"
        "own_process(lambda: print(asleep - command_began()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) < 60, "Python's own start, before the first line"
    before = time.monotonic()
    assert before <= command_began() <= time.monotonic()
    assert process_began() < before


def test_the_start_of_a_process_is_that_which_the_kernel_tells() -> None:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    age = up - ticks / os.sysconf("SC_CLK_TCK")
    assert time.monotonic() - process_began() == pytest.approx(age, abs=5)


def test_the_load_is_at_least_that_of_an_idle_machine() -> None:
    assert load(0.01) >= 1
