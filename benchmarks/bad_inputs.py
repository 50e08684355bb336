"""How long each bad input of the tests takes to be refused, every command in a process of its own.

    python -m benchmarks.bad_inputs [--part 1/4]

The inputs are those of tests/unit/test_bad_inputs.py. As for a user from the second command on, the caches below
XDG_CACHE_HOME are filled by one command before. Prints the slowest ten. The last line is one JSON object:
worst_seconds and median_seconds by the clock, count, and wrong (inputs that ended with another code than expected).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.machine import describe
from tests.unit.bad_input_case import CONFIG, Case, png, write_files
from tests.unit.bad_input_early import EARLY, IDS
from tests.unit.bad_input_late import LATE

ROOT = Path(__file__).parent.parent
PHOTOS = {
    f"photos/{label}/{index}.png": png(10 * place + index) for place, label in enumerate("abc") for index in range(9)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="K/M: each M-th input, from the K-th on")
    part, parts = map(int, parser.parse_args().part.split("/"))
    print(describe())
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        environment = surroundings(Path(name))
        seconds_of(Case(("models", "resnet18"), (), code=0), Path(name) / "first", environment)
        measured = [
            (*seconds_of(case, Path(name) / f"{place}", environment), case)
            for place, case in enumerate([*EARLY, *IDS, *LATE][part - 1 :: parts])
        ]
    for seconds, _, case in sorted(measured, key=lambda one: -one[0])[:10]:
        print(f"{seconds:6.2f} s  {case.name}")
    print(
        json.dumps(
            {
                "worst_seconds": round(max(seconds for seconds, _, _ in measured), 2),
                "median_seconds": round(statistics.median(seconds for seconds, _, _ in measured), 2),
                "count": len(measured),
                "wrong": [case.name for _, code, case in measured if code != case.code],
            }
        )
    )


def surroundings(folder: Path) -> Mapping[str, str]:
    """The environment of every command: a home and caches of its own."""
    for name in ("home", "cache", "matplotlib"):
        (folder / name).mkdir()
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "MPLCONFIGDIR": "matplotlib"}
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return kept | {key: str(folder / name) for key, name in places.items()} | {"PYTHONPATH": str(ROOT)}


def seconds_of(case: Case, folder: Path, environment: Mapping[str, str]) -> tuple[float, int]:
    """(seconds, exit code) of the command."""
    write_files(folder, {"config.yaml": CONFIG, **PHOTOS, **case.files})
    started = time.monotonic()
    command = [sys.executable, "-m", "tlray.cli", *case.arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return time.monotonic() - started, done.returncode


if __name__ == "__main__":
    main()
