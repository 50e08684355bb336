"""Damages tar, CSV, Parquet and zip files at random and reads them: each is read, or refused in one line.

python -m scripts.fuzz_sources --count 100000 --seed 0       from the repository's root; some minutes
python -m scripts.fuzz_sources --count 1 --first 4711 --keep folder      one file again, kept in a folder

File number n of a seed is always the same: one of the files of tests/hostile_sources.py with a few changes, their
checksums renewed where nothing behind them would be reached else. A child process reads all of it; it may take MEMORY
beyond what it starts with, and tests/fuzzing.py's SECONDS for a file. Exits with 1 where anything failed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzzing import limit_memory, outcomes
from tests.hostile_sources import GOOD, damaged, originals, outcome

MEMORY = 2**30
ENOUGH = 20  # failures, after which nothing new is learnt


def file_of(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(name, contents) of file `number` of `seed`."""
    name = list(files)[number % len(files)]
    return name, damaged(name, files, seed, number)


def child(seed: int, first: int, stop: int) -> None:
    """Read files first..stop, a line on standard output for each."""
    files = originals()
    with tempfile.TemporaryDirectory(prefix="tlray-fuzz-") as folder:
        for name, data in files.items():
            assert outcome(name, data, Path(folder)) == "read", name  # loads what is loaded late
        limit_memory(MEMORY)
        for number in range(first, stop):
            name, data = file_of(files, seed, number)
            os.write(sys.stdout.fileno(), (outcome(name, data, Path(folder)) + "\n").encode(errors="replace"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Read randomly damaged containers and tables of images")
    parser.add_argument("--count", type=int, default=1000, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--keep", type=Path, help="folder to write files to that fail; with --count 1, the file")
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    files = originals()
    seen: Counter[str] = Counter()
    started = time.monotonic()
    stop = arguments.first + arguments.count
    for number, result in outcomes("scripts.fuzz_sources", arguments.seed, arguments.first, stop):
        seen[result if result in GOOD else "failed"] += 1
        name, data = file_of(files, arguments.seed, number)
        if result not in GOOD:
            print(f"file {number} of seed {arguments.seed}, {name}: {result}", flush=True)
        if arguments.keep and (result not in GOOD or arguments.count == 1):
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{arguments.seed}-{number}-{name}").write_bytes(data)
        if seen["failed"] == ENOUGH:
            print(f"stopped after {ENOUGH} failures")
            break
    print(json.dumps({**seen, "count": seen.total(), "seconds": round(time.monotonic() - started, 1)}))
    return 1 if seen["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
