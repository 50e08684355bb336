"""How far a run is, read from its folder and its output without any code of tlray's."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENDED = ("completed", "stopped")
EPOCH = re.compile(r"^(\S+): epoch (\d+)/(\d+),", re.M)
UNWANTED = re.compile(
    r"Traceback \(most recent|\*\*\* SIG|Fatal Python error|terminate called|core dumped|\[state-dump\]"
)


@dataclass(frozen=True)
class State:
    """The run as its folder has it."""

    run: Path | None = None  # a local copy of the newest run folder
    prepared: bool = False  # it can be resumed
    done: bool = False
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)  # trial id -> its final row
    epochs: dict[str, int] = field(default_factory=dict)  # trial id -> epochs that it has kept


def read_state(storage: Path) -> State:
    """`storage`: a local copy of what lies below a configuration's `storage`."""
    runs = sorted(path.parent for path in storage.glob("*/*/config.yaml"))
    if not runs:
        return State()
    run = runs[-1]  # names begin with the time
    rows = {path.parent.name: _json(path) for path in run.glob("trials/*/result.json")}
    progress = {path.parent.name: _json(path) for path in run.glob("trials/*/progress.json")}
    return State(
        run=run,
        prepared=(run / "manifest.parquet").exists(),
        done=(run / "DONE").exists(),
        finished={name: without_checksum(row) for name, row in rows.items() if row.get("status") in ENDED},
        epochs={name: int(one.get("epoch", 0)) for name, one in progress.items()},
    )


def without_checksum(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sha256"}


def phase_of(text: str, files: Iterable[str]) -> str:
    """What a run is doing, by its output and by the names of its files."""
    if "gain in points" in text or "\nleaderboard" in text:
        names = {name.rpartition("/")[2] for name in files}
        return "ending" if "DONE" in names else "exporting" if "report.html" in names else "reporting"
    epochs = EPOCH.findall(text)
    if epochs:
        trial, epoch, last = epochs[-1]
        if "probe" in trial:
            return "probes"
        return "scoring" if epoch == last and f"] {trial}: " not in text else "training"
    if "trials are finished already" in text or re.search(r"\d+ test images of", text):
        return "probes" if (done := _frozen_work(text)) and done[0] == done[1] else "pass"
    if "prepared: " in text:
        return "planning"
    return "preparing" if "run folder: " in text else "starting"


def epochs_again(text: str, kept: dict[str, int]) -> Counter[str]:
    """Epochs that one process has trained although they were kept before it, or had been trained by it, by trial."""
    again: Counter[str] = Counter()
    far = dict(kept)
    for trial, epoch, _ in EPOCH.findall(text):
        if int(epoch) <= far.get(trial, 0):
            again[trial] += 1
        far[trial] = max(far.get(trial, 0), int(epoch))
    return again


def broken_words(text: str) -> list[str]:
    """What a user should never see: tracebacks, and dumps of Ray's own programs."""
    return [match.group() for match in UNWANTED.finditer(text)]


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def error_line(text: str) -> str:
    """The one line that tells what went wrong; empty where there is none, or more than one."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return lines[0] if len(lines) == 1 else ""


def _frozen_work(text: str) -> tuple[str, str] | None:
    found = re.findall(r"frozen work: (\d+) of (\d+) images", text)
    return found[-1] if found else None


def _json(path: Path) -> dict[str, Any]:
    """Empty for a file that is damaged or gone."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
