"""Does a run end when its budget ends, by the clock of whoever started it?

    python -m benchmarks.budgets [--folder FOLDER] [--cases probes,mixed,busy] [--minutes 1,5,20]

Three configurations on real images at 112 pixels, each far larger than its budget: `probes` (four backbones, 32 linear
probes, ants and bees), `mixed` (two backbones, probes, partial and full training, dogs and cats), and `busy` (two
backbones, gradual and full training, CIFAR-10, beside two endless loops that keep both cores busy). Each is one
`tlray run` in a process of its own with nothing in a store and budget.hours of 1, 5 and 20 minutes; the clock is that
of this program, from the start of the process to its DONE.

A run may end before its time where all its trials have. It may also refuse its budget, with exit code 2 and a line that
names budget.hours; `seconds` is then how long that took. FOLDER keeps the outcomes, by default only while this runs:
what is there is not repeated. The last line is one JSON object: worst_overrun_fraction and worst_unused_fraction (of
the budget, over the runs that left trials out), num_refused, num_incomplete (runs without an export or a baseline),
`all`.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.choice import config
from benchmarks.machine import describe, shared_folder
from benchmarks.quality_parts.sets import SETS, make_set
from tlray.runs.board import load_leaderboard
from tlray.runs.budget.clock import read_spent

RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
BUSY_LOOPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where outcomes and runs are kept")
    parser.add_argument("--cases", default="probes,mixed,busy")
    parser.add_argument("--minutes", default="1,5,20")
    options = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(options.folder or name).absolute()
        rows = [
            outcome_of(folder, case, float(minutes))
            for minutes in options.minutes.split(",")
            for case in options.cases.split(",")
        ]
    ended = [row for row in rows if not row["refused"]]
    summary = {
        "worst_overrun_fraction": max((row["clock_fraction"] - 1 for row in ended), default=None),
        "worst_unused_fraction": max((1 - row["clock_fraction"] for row in ended if row["left_out"]), default=None),
        "num_refused": len(rows) - len(ended),
        "num_incomplete": sum(not (row["exports"] and row["has_baseline"]) for row in ended),
    }
    rounded = {key: None if value is None else round(value, 3) for key, value in summary.items()}
    print(json.dumps(rounded | {"all": rows}))


def outcome_of(folder: Path, case: str, minutes: float) -> dict[str, Any]:
    """One row, printed; run now unless FOLDER has it."""
    place = folder / f"{case}-{minutes:g}"
    kept = place / "outcome.json"
    if not kept.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        settings = settings_of(folder, case) | {"name": "run", "storage": str(place), "budget": {"hours": minutes / 60}}
        (place / "config.yaml").write_text(yaml.safe_dump(settings))
        with busy_loops(BUSY_LOOPS if case == "busy" else 0):
            outcome = run(place, 60 * minutes)
        kept.write_text(json.dumps({"case": case, "minutes": minutes, **outcome}))
    row: dict[str, Any] = json.loads(kept.read_text())
    print(json.dumps(row), flush=True)
    return row


def settings_of(folder: Path, case: str) -> dict[str, Any]:
    data = {"probes": "hymenoptera", "mixed": "dogcat", "busy": "cifar10"}[case]
    settings = config(make_set(folder, SETS[data], shared_folder(), 0), 0)
    probes = {"strategy": "linear_probe", "search_space": {"lr": {"grid": RATES}}}
    strategies: dict[str, list[Any]] = {
        "probes": [probes],
        "mixed": [probes, {"strategy": "partial", "trainable_blocks": 3}, "full"],
        "busy": ["gradual", "full"],
    }
    backbones = settings["backbones"] if case == "probes" else settings["backbones"][:2]
    return settings | {
        "backbones": backbones,
        "strategies": strategies[case],
        "training": {"epochs": 30, "batch_size": 16},
        "search_space": {"lr": {"grid": RATES}},
        "sweep": {"max_concurrent_trials": 2},
    }


def run(place: Path, budget: float) -> dict[str, Any]:
    """A whole `tlray run` by the clock."""
    command = [sys.executable, "-m", "tlray.cli", "run", str(place / "config.yaml")]
    started = time.time()
    with (place / "log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    ended = time.time()
    last = (place / "log").read_text().splitlines()[-1]
    done = list((place / "run").glob("*/DONE"))
    if not done:
        assert code == 2, last
        assert "budget.hours" in last, last
        return {"refused": True, "seconds": round(ended - started, 1), "words": last}
    uri = str(done[0].parent)
    finished: float = json.loads(done[0].read_text())["finished"]
    leaderboard, spent = load_leaderboard(uri), read_spent(uri)
    statuses = [row.status for row in leaderboard.rows]
    return {
        "refused": False,
        "seconds": round(finished - started, 1),
        "clock_fraction": round((finished - started) / budget, 3),
        "left_out": len(spent.dropped) if spent is not None else 0,
        "completed": statuses.count("completed"),
        "stopped": statuses.count("stopped"),
        "failed": statuses.count("failed"),
        "has_baseline": leaderboard.baseline is not None,
        "exports": len(list(done[0].parent.glob("exports/*/SHA256SUMS"))),
    }


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many processes that compute all the time, at ordinary priority."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
