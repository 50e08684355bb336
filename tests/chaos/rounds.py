"""One round: a state, a disturbance, the commands that a user would give until all is done, and what came of it.

A kind of round (kinds.py) begins with `begin` and `launch`, disturbs, and ends with `settle` and `finish`.
"""

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.compare import Differences
from tests.chaos.draw import Choice, pick
from tests.chaos.places import Place
from tests.chaos.processes import Program, ProgressOf, catches, end_of, kill, left_after
from tests.chaos.reference import Events, Reference, Snapshot, clear
from tests.chaos.setting import Setting
from tests.chaos.state import State, broken_words, epochs_again, error_line, last_line, phase_of, read_state
from tests.chaos.sweep import Flow

TRIES = 4  # commands after the disturbance
SECONDS_TO_LEAVE = 45.0  # for processes of a command that has ended
NOTHING_TO_DO = 3


@dataclass
class Verdict:
    """What a round came to. Every list is empty when all is well; `line` is what is printed."""

    seed: int
    round: int
    kind: str
    phase: str = ""
    disturbed: str = ""
    codes: list[int | None] = field(default_factory=list)  # of the commands, None for one that hung
    seconds: float = 0.0
    lost_trials: list[str] = field(default_factory=list)
    repeated_trials: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    differing_leaderboards: list[str] = field(default_factory=list)
    differing_exports: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    wrong_endings: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> dict[str, list[str]]:
        return {name: value for name, value in asdict(self).items() if name in COUNTED and value}

    @property
    def line(self) -> str:
        codes = ",".join("hang" if code is None else str(code) for code in self.codes)
        words = "; ".join(
            f"{name}: {' / '.join(one[:MOST_SHOWN] for one in value[:3])}" for name, value in self.complaints.items()
        )
        head = f"{self.seed}/{self.round} {self.kind} in {self.phase or '-'}: {self.disturbed}"
        return f"{head} | codes {codes} | {self.seconds:.0f} s | {words or 'ok'}"


MOST_SHOWN = 300  # characters of a complaint
COUNTED = (
    "lost_trials",
    "repeated_trials",
    "hangs",
    "differing_leaderboards",
    "differing_exports",
    "tracebacks",
    "leftovers",
    "wrong_endings",
)


@dataclass
class Round:
    """The means of a round, and its verdict as far as it is."""

    setting: Setting
    verdict: Verdict
    rng: random.Random
    flow: Flow
    place: Place
    ray: str
    reference: Reference
    compare: Callable[[Path, Path, Path], Differences]
    exempt: set[str] = field(default_factory=set)  # trials whose own files were damaged: they may train again
    _state: State = field(default_factory=State)  # before the command that runs now

    # --- before and during the disturbance

    def begin(self, snapshot: Snapshot | None) -> None:
        clear(self.setting, self.place, snapshot.folder if snapshot is not None else None)
        self.look()

    def look(self) -> None:
        """Take the files as they are now for those from before the next command."""
        self._state = self.state()

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return pick(self.rng, choices)

    def random_event(self) -> tuple[Snapshot | None, int]:
        """Where to begin, and after how many events of the command to strike: phases are as probable as each other."""
        phases = sorted(set(self.reference.phases))
        phase = self.pick(phases)
        event = self.pick([index for index, one in enumerate(self.reference.phases) if one == phase])
        before = [one for one in self.reference.snapshots[:-1] if one.event <= event]
        snapshot = self.pick([None, *before[-6:]]) if before else None
        return snapshot, event - (snapshot.event if snapshot is not None else 0)

    def launch(self, arguments: Sequence[str] | None = None, **limits: Any) -> Program:
        """The command that goes on from where the files are; or another one."""
        number = len(self.verdict.codes)
        log = self.setting.folder / "logs" / f"{self.verdict.seed}-{self.verdict.round}-{number}.log"
        return self.setting.start(arguments or self.next_command(), self.ray, log, **limits)

    def next_command(self) -> Sequence[str]:
        if self.flow.resumes and self._state.prepared and self._state.run is not None:
            home = self._state.run.parent.name
            return ("resume", f"{self.place.uri}/{home}/{self._state.run.name}")
        return self.flow.first

    def wait_for(self, program: Program, num_events: int) -> None:
        """Until the command has come so far, and a moment longer: files are written between events too."""
        events = Events(program, self.place)
        deadline = time.monotonic() + self.setting.limit
        while events.count() < num_events and program.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.pick([0.0, self.rng.uniform(0, 0.1), self.rng.uniform(0, 3.0)]))
        self.note_phase(program)

    def wait_for_handlers(self, program: Program) -> None:
        """Until the command's own instructions run; a signal before that is the interpreter's."""
        deadline = time.monotonic() + self.setting.limit
        while not catches(program, signal.SIGTERM) and program.is_running and time.monotonic() < deadline:
            time.sleep(0.01)

    def note_phase(self, program: Program) -> None:
        self.verdict.phase = phase_of(program.text(), self.place.versions())

    # --- the ends of commands

    def settle(self, program: Program, allowed: Sequence[int]) -> int | None:
        """Wait for a command's end and judge it; `allowed` are its exit codes."""
        code = end_of(program, ProgressOf(program, self.place.versions))
        text = program.text()
        self.verdict.codes.append(code)
        if code is None:
            self.verdict.hangs.append(f"{program.arguments[0]}: {last_line(text)}")
        elif code not in allowed:
            self.verdict.wrong_endings.append(f"exit code {code}, not {allowed}: {last_line(text)}")
        elif code > 0 and code != NOTHING_TO_DO and not error_line(text):
            self.verdict.wrong_endings.append(f"exit code {code} without one clear line: {last_line(text)!r}")
        self.verdict.tracebacks += broken_words(text)
        left = left_after(SECONDS_TO_LEAVE, program.mark)
        if left:
            self.verdict.leftovers += [" ".join(process.cmdline())[:60] for process in left]
            kill(left)
        self._judge_trials(text)
        return code

    def finish(self) -> None:
        """Go on until it is done, then compare. A command that has got over its disturbance is not given again."""
        allowed = (0,) if self.flow.name != "retrain" else (0, NOTHING_TO_DO)
        for number in range(TRIES if self.verdict.codes[-1:] != [0] else 0):
            code = self.settle(self.launch(), allowed)
            if code in allowed or code is None:
                break
            if number == TRIES - 1:
                self.verdict.differing_leaderboards.append("never done")
        self.judge_end()

    def judge_end(self) -> None:
        final, ours = self.reference.final, self.place.local(self.setting.folder / "local")
        state = read_state(ours)
        try:
            if self.flow.name == "sweep":
                theirs = read_state(final).run
                found = self.compare(state.run or ours, theirs or final, self.setting.images)
            elif self.flow.name == "retrain":
                found = self.compare(ours / "sweep", final / "sweep", self.setting.images)
            else:
                found = self.compare(ours / "output", final / "output", self.setting.images)
        except Exception as error:  # a file of the end that cannot be read is a difference
            found = Differences((f"{type(error).__name__}: {error}",))
        self.verdict.differing_leaderboards += found.leaderboard
        self.verdict.differing_exports += found.export
        if self.setting.temporary.exists():
            self.verdict.leftovers += [path.name for path in self.setting.temporary.glob("tlray-*")]
        if not _comes_to_rest(self.setting):
            self.verdict.leftovers.append("tasks in the Ray that stays")

    def state(self) -> State:
        return read_state(self.place.local(self.setting.folder / "local"))

    def _judge_trials(self, text: str) -> None:
        """What was finished before this command is as it was; nothing is trained twice beyond the epoch in flight."""
        before, self._state = self._state, self.state()
        same_run = before.run is None or self._state.run is None or before.run.name == self._state.run.name
        if not same_run:  # it had not begun to train
            return
        for trial, row in before.finished.items():
            if trial not in self.exempt and self._state.finished.get(trial) != row:
                self.verdict.lost_trials.append(trial)
        for trial, count in epochs_again(text, before.epochs).items():
            if trial not in self.exempt and count > (0 if trial in before.finished else 1):
                self.verdict.repeated_trials.append(f"{trial}: {count} epochs")


def _comes_to_rest(setting: Setting) -> bool:
    """Whether the Ray that stays has nothing to do."""
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    while time.monotonic() < deadline:
        if not setting.busy_workers():
            return True
        time.sleep(0.5)
    return False
