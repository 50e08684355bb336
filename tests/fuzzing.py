"""Damaging files at random, and a child process that tries them one after the other: it may crash, hang, or swell.

    change(data, files, random.Random(0))                   # data is a bytearray
    sys.exit(run(Fuzz("scripts.fuzz_decode", "Decode randomly damaged image files", GOOD, file_of, child)))

The module is run with `--child SEED FIRST STOP` and writes a line for each file.
"""

import argparse
import json
import os
import random
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 30  # for a file
ENOUGH = 20  # failures, after which nothing new is learnt
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def change(data: bytearray, files: list[bytes], choice: random.Random) -> None:
    """One change; half of them near the start, where formats keep their sizes and tables."""
    end = len(data) if choice.random() < 0.5 else min(len(data), 200)
    at = choice.randrange(end) if end else 0
    kind = choice.choices(range(7), (6, 6, 4, 2, 2, 2, 1))[0]
    if kind == 0 and data:
        data[at] = choice.randrange(256)
    elif kind == 1 and data:
        data[at] ^= 1 << choice.randrange(8)
    elif kind == 2:
        width = choice.choice((1, 2, 4))
        value = choice.choice(EXTREMES) % 256**width
        data[at : at + width] = value.to_bytes(width, choice.choice(("little", "big")))
    elif kind == 3:
        del data[at : at + choice.randrange(1, 40)]
    elif kind == 4:
        data[at:at] = choice.randbytes(choice.randrange(1, 40))
    elif kind == 5:
        other = choice.choice(files)
        start = choice.randrange(len(other))
        data[at : at + choice.randrange(1, 200)] = other[start : start + choice.randrange(1, 200)]
    else:
        del data[choice.randrange(len(data) + 1) :]


def limit_memory(num_bytes: int) -> None:
    """Let this process take no more than that beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcomes(module: str, seed: int, first: int, stop: int) -> Iterator[tuple[int, str]]:
    """Each file's number and outcome; a child that ends or hangs is an outcome too, and the next goes on after it."""
    while first < stop:
        command = [sys.executable, "-m", module, "--child", f"{seed}", f"{first}", f"{stop}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            for line in _lines(process):
                yield first, line
                first += 1
            hangs = process.poll() is None
            process.kill()
            if first < stop:
                yield first, f"took more than {SECONDS} s" if hangs else f"ended the process ({process.wait()})"
                first += 1


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines that it writes, until it ends or has been silent for too long."""
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(SECONDS):
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                process.wait()
                return
            *lines, rest = (rest + part).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


@dataclass(frozen=True)
class Fuzz:
    """A script that damages files and reads them."""

    module: str
    description: str
    good: tuple[str, ...]  # outcomes; the others are failures
    file_of: Callable[[int, int], tuple[str, bytes]]  # seed and number -> a name, and the damaged contents
    child: Callable[[int, int, int], None]  # reads files first..stop of a seed, a line on standard output for each


def run(fuzz: Fuzz) -> int:
    """The script's command line -> its exit code: 1 where any file failed."""
    parser = argparse.ArgumentParser(description=fuzz.description)
    parser.add_argument("--count", type=int, default=1000, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--keep", type=Path, help="folder to write files to that fail; with --count 1, the file")
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        fuzz.child(*given.child)
        return 0
    seen: Counter[str] = Counter()
    started = time.monotonic()
    for number, outcome in outcomes(fuzz.module, given.seed, given.first, given.first + given.count):
        failed = outcome not in fuzz.good
        seen["failed" if failed else outcome] += 1
        if failed:
            print(f"file {number} of seed {given.seed}, {fuzz.file_of(given.seed, number)[0]}: {outcome}", flush=True)
        if given.keep and (failed or given.count == 1):
            _keep(given.keep, fuzz, given.seed, number)
        if seen["failed"] == ENOUGH:
            print(f"stopped after {ENOUGH} failures")
            break
    print(json.dumps({**seen, "count": seen.total(), "seconds": round(time.monotonic() - started, 1)}))
    return 1 if seen["failed"] else 0


def _keep(folder: Path, fuzz: Fuzz, seed: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name, data = fuzz.file_of(seed, number)
    (folder / f"{seed}-{number}-{name}").write_bytes(data)
