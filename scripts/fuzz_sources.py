"""Damages tar, CSV, Parquet and zip files at random and reads them: each is read, or refused in one line.

python -m scripts.fuzz_sources --count 100000 --seed 0       from the repository's root; some minutes
python -m scripts.fuzz_sources --count 1 --first 4711 --keep folder      one file again, kept in a folder

File number n of a seed is always the same: one of the files of tests/hostile_sources.py with a few changes, their
checksums renewed where nothing behind them would be reached else. A child process reads all of it; it may take MEMORY
beyond what it starts with, and tests/fuzzing.py's SECONDS for a file. Exits with 1 where anything failed.
"""

import functools
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzzing import Fuzz, limit_memory, run
from tests.hostile_sources import GOOD, damaged, originals, outcome

MEMORY = 2**30


@functools.cache
def whole_files() -> dict[str, bytes]:
    return originals()


def file_of(seed: int, number: int) -> tuple[str, bytes]:
    """(name, contents) of file `number` of `seed`."""
    files = whole_files()
    name = list(files)[number % len(files)]
    return name, damaged(name, files, seed, number)


def child(seed: int, first: int, stop: int) -> None:
    """Read files first..stop, a line on standard output for each."""
    with tempfile.TemporaryDirectory(prefix="tlray-fuzz-") as folder:
        for name, data in whole_files().items():
            assert outcome(name, data, Path(folder)) == "read", name  # loads what is loaded late
        limit_memory(MEMORY)
        for number in range(first, stop):
            name, data = file_of(seed, number)
            os.write(sys.stdout.fileno(), (outcome(name, data, Path(folder)) + "\n").encode(errors="replace"))


if __name__ == "__main__":
    sys.exit(run(Fuzz("scripts.fuzz_sources", "Read randomly damaged containers and tables", GOOD, file_of, child)))
