"""The kinds of rounds: of 100 how many, what they disturb, on which Ray, and how."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import fault_proxy
import psutil
from ray_clusters import kill_node

from tests.chaos.damage import damage_one, repair
from tests.chaos.disks import small_disk
from tests.chaos.processes import Program, is_worker, name_of
from tests.chaos.rounds import NOTHING_TO_DO, Round
from tests.chaos.state import error_line

KILLED = -signal.SIGKILL
METHODS = ("GET", "PUT", "HEAD", "DELETE", "POST")
OUTAGES = {
    "connections reset": fault_proxy.reset,
    "no answers": fault_proxy.silent,
    "503": fault_proxy.slow_down,
    "500": fault_proxy.internal_error,
}
DAMAGED_CODES = (0, 1, 2)


@dataclass(frozen=True)
class Kind:
    share: int
    flow: str  # sweep, retrain, predict
    ray: str  # see Setting.environment
    disturb: Callable[[Round], None]


# --- kills


def power_cut(round: Round) -> None:
    """Everything ends at once, in one of the states that were kept."""
    snapshot = round.pick(round.reference.snapshots[:-1])
    round.begin(snapshot)
    round.verdict.phase, round.verdict.disturbed = snapshot.phase, f"all processes, at event {snapshot.event}"
    round.finish()


def signal_driver(number: int) -> Callable[[Round], None]:
    def disturb(round: Round) -> None:
        snapshot, event = round.random_event()
        round.begin(snapshot)
        program = round.launch(forked=False)
        round.wait_for_handlers(program)
        round.wait_for(program, event)
        program.process.send_signal(number)
        name = signal.Signals(number).name
        round.verdict.disturbed = f"{name} to `tlray {program.arguments[0]}` at event {event}"
        round.settle(program, (0, KILLED if number == signal.SIGKILL else 130))
        round.finish()

    return disturb


def kill_named(wanted: Callable[[str], bool]) -> Callable[[Round], None]:
    """SIGKILL of a process that works for the command: it gets over that, or ends with 1 and one line."""

    def disturb(round: Round) -> None:
        snapshot, event = round.random_event()
        round.begin(snapshot)
        program = round.launch()
        round.wait_for(program, event)
        victim = _victim(round, program, wanted)
        round.note_phase(program)
        if victim is None:
            round.verdict.disturbed = "nothing was there to kill"
        else:
            round.verdict.disturbed = f"SIGKILL of {name_of(victim)} at event {event}"
            with suppress(psutil.Error):
                victim.kill()
        round.settle(program, (0, 1))
        round.finish()

    return disturb


def _victim(round: Round, program: Program, wanted: Callable[[str], bool]) -> psutil.Process | None:
    """One of those that are wanted, as soon as there is one; None where the command ends without."""
    while program.is_running:
        there = [one for one in program.all_processes() if one.pid != program.process.pid and wanted(name_of(one))]
        if there:
            return round.pick(sorted(there, key=lambda one: one.pid))
        time.sleep(0.05)
    return None


def _works(name: str) -> bool:
    return is_worker(name) and "IDLE" not in name


def kill_a_node(round: Round) -> None:
    """One of two workers of a cluster of three raylets, with all its processes; another one comes afterwards."""
    setting = round.setting
    nodes = setting.live_nodes()
    while len(nodes) < 2:
        nodes.append(setting.add_node())
    snapshot, event = round.random_event()
    round.begin(snapshot)
    program = round.launch()
    round.wait_for(program, event)
    kill_node(round.pick(nodes))
    round.verdict.disturbed = f"a node of three, at event {event}"
    round.settle(program, (0, 1))
    setting.add_node()
    round.finish()


# --- the store


def outage(round: Round) -> None:
    words = round.pick(sorted(OUTAGES))
    seconds = round.pick([1, 3, 10, 20, 40, 60])
    _break_store(round, OUTAGES[words], seconds, f"{words} for {seconds} s", (0, 1))


def expired_credentials(round: Round) -> None:
    """Code 2: what the user gave holds no longer."""
    _break_store(round, fault_proxy.expired_token, 120.0, "credentials expire", (0, 1, 2))


def _break_store(round: Round, fault: fault_proxy.Fault, seconds: float, words: str, allowed: Sequence[int]) -> None:
    snapshot, event = round.random_event()
    round.begin(snapshot)
    program = round.launch()
    round.wait_for(program, event)
    with _broken(round, fault), suppress(Exception):
        program.process.wait(seconds)
    round.verdict.disturbed = f"{words} at event {event}"
    round.settle(program, allowed)
    round.finish()


@contextmanager
def _broken(round: Round, fault: fault_proxy.Fault):
    for method in METHODS:
        round.setting.proxy.spoil(fault, method=method)
    try:
        yield
    finally:
        round.setting.proxy.heal()


# --- the disk


def full_disk(round: Round) -> None:
    """The run's disk has some room left, and too little; then more room is made."""
    snapshot, _ = round.random_event()
    room = round.pick([0, 2**14, 2**17, 2**19, 2**20, 2**21])
    with small_disk(round, snapshot, room) as limits:
        program = round.launch(**limits)
        round.verdict.phase = snapshot.phase if snapshot is not None else "starting"
        round.verdict.disturbed = f"{room} bytes of room"
        round.settle(program, (0, 1, 2))
    round.finish()


# --- damage


def damage(how: str) -> Callable[[Round], None]:
    """Of one file, of an interrupted run or of a finished one: got over, or named in one line until it is put back."""

    def disturb(round: Round) -> None:
        snapshots = [one for one in round.reference.snapshots if one.phase not in ("starting", "preparing", "planning")]
        snapshot = round.pick([round.reference.end, round.pick(snapshots)])
        round.begin(snapshot)
        found = damage_one(round.setting.local_place.folder, round.place.versions(), how, round.rng)
        round.verdict.phase, round.verdict.disturbed = snapshot.phase, found.words
        round.exempt |= {found.trial} if found.trial is not None else set()
        program = round.launch()
        code = round.settle(program, DAMAGED_CODES)
        if code in (1, 2):
            if found.name.rpartition("/")[2] not in (line := error_line(program.text())):
                round.verdict.wrong_endings.append(f"{found.name} is not named: {line}")
            repair(round.setting.local_place.folder, found)
            round.look()
            round.finish()
        else:
            round.judge_end()

    return disturb


KINDS = {
    "power-cut": Kind(14, "sweep", "shared", power_cut),
    "kill-driver": Kind(9, "sweep", "shared", signal_driver(signal.SIGKILL)),
    "term-driver": Kind(5, "sweep", "shared", signal_driver(signal.SIGTERM)),
    "int-driver": Kind(4, "sweep", "shared", signal_driver(signal.SIGINT)),
    "kill-worker": Kind(9, "sweep", "shared", kill_named(_works)),
    "kill-raylet": Kind(3, "sweep", "own", kill_named(lambda name: name == "raylet")),
    "kill-gcs": Kind(3, "sweep", "own", kill_named(lambda name: name == "gcs_server")),
    "kill-node": Kind(3, "sweep", "nodes", kill_a_node),
    "outage": Kind(6, "sweep", "s3", outage),
    "credentials": Kind(3, "sweep", "s3", expired_credentials),
    "disk": Kind(4, "sweep", "shared", full_disk),
    "flip": Kind(12, "sweep", "shared", damage("flip")),
    "cut": Kind(9, "sweep", "shared", damage("cut")),
    "missing": Kind(8, "sweep", "shared", damage("missing")),
    "retrain-kill": Kind(4, "retrain", "shared", signal_driver(signal.SIGKILL)),
    "predict-kill": Kind(4, "predict", "shared", signal_driver(signal.SIGKILL)),
}
assert sum(kind.share for kind in KINDS.values()) == 100
assert NOTHING_TO_DO not in DAMAGED_CODES
