"""The undisturbed run of a flow, made once, with the states that its files were in on the way."""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.places import Place
from tests.chaos.processes import Program, halted
from tests.chaos.setting import ROOT, Setting
from tests.chaos.state import phase_of
from tests.chaos.sweep import Flow

POLL = 0.05  # seconds
LIMIT = 900.0  # seconds: it is made on a busy machine too


@dataclass(frozen=True)
class Snapshot:
    """`event`: how many events there had been; see `count_events`."""

    folder: Path
    phase: str
    event: int


@dataclass(frozen=True)
class Reference:
    final: Path  # a local copy of what it came to
    snapshots: tuple[Snapshot, ...]  # of the way; the last one is of the end
    phases: tuple[str, ...]  # of every event
    seconds: float

    @property
    def end(self) -> Snapshot:
        return self.snapshots[-1]


def make_reference(setting: Setting, flow: Flow, place: Place, ray: str, *, every: float = 0.0) -> Reference:
    """`every`: seconds between snapshots at least. One that the same code has made in this folder is taken again."""
    folder = setting.folder / f"reference-{flow.name}-{ray}"
    if (known := _load(folder, place)) is not None:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    clear(setting, place)
    program = setting.start(flow.first, ray, folder / "log")
    started = time.monotonic()
    phases: list[str] = []
    snapshots: list[Snapshot] = []
    last = 0.0
    events = Events(program, place)
    while program.is_running:
        if time.monotonic() - started > LIMIT:
            program.process.kill()
            break
        before = events.count()
        if before > len(phases):
            phase = events.phase()
            phases += [phase] * (before - len(phases))
            if time.monotonic() - last >= every or (snapshots and snapshots[-1].phase != phase):
                target = folder / f"{len(snapshots):03}"
                target.mkdir()
                with halted(program.all_processes()):
                    place.keep(target)
                snapshots.append(Snapshot(target, phase, before))
                last = time.monotonic()
        time.sleep(POLL)
    if program.process.wait() != 0:
        raise RuntimeError(f"the undisturbed {flow.name} has failed:\n{program.text()[-3000:]}")
    final = folder / "final"
    final.mkdir()
    place.keep(final)
    snapshots.append(Snapshot(final, "done", len(phases)))
    reference = Reference(final, tuple(snapshots), tuple(phases), time.monotonic() - started)
    _save(folder, place, reference)
    return reference


def _save(folder: Path, place: Place, reference: Reference) -> None:
    snapshots = [(str(one.folder), one.phase, one.event) for one in reference.snapshots]
    about = {"code": _code(), "uri": place.uri, "snapshots": snapshots, "phases": reference.phases}
    (folder / "about.json").write_text(json.dumps(about))


def _load(folder: Path, place: Place) -> Reference | None:
    if not (folder / "about.json").exists():
        return None
    about = json.loads((folder / "about.json").read_text())
    if (about["code"], about["uri"]) != (_code(), place.uri):
        return None
    snapshots = tuple(Snapshot(Path(path), phase, event) for path, phase, event in about["snapshots"])
    return Reference(folder / "final", snapshots, tuple(about["phases"]), 0.0)


def _code() -> str:
    """A checksum of the sources of tlray and of the rounds."""
    paths = sorted(path for folder in ("tlray", "tests/chaos") for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def clear(setting: Setting, place: Place, snapshot: Path | None = None) -> None:
    """The place as it was at a snapshot, or empty; caches and temporary files of the round before are gone."""
    for name in ("cache", "tmp"):
        shutil.rmtree(setting.live / name, ignore_errors=True)
    place.restore(snapshot)


class Events:
    """Counts the lines that a program has printed and the files that it has written since it started.

    That measures how far it is on a machine of any speed.
    """

    def __init__(self, program: Program, place: Place) -> None:
        self._program, self._place = program, place
        self._seen = set(place.versions().items())
        self._num_files = 0

    def count(self) -> int:
        new = set(self._place.versions().items()) - self._seen
        self._seen |= new
        self._num_files += len(new)
        return self._num_files + self._program.text().count("\n")

    def phase(self) -> str:
        return phase_of(self._program.text(), [name for name, _ in self._place.versions().items()])
