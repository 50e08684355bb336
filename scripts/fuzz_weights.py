"""Damages weights files at random and reads them: each is weights or one line that says what is wrong, nothing else.

    python -m scripts.fuzz_weights --count 20000 --seed 0        from the repository's root; some minutes
    python -m scripts.fuzz_weights --count 1 --first 4711 --keep folder      one file again, kept in a folder

File number n of a seed is always the same: a safetensors file or a torch.save file of either kind with a few
changes, half of them near its start. A process of its own reads it, which may take MEMORY beyond what it starts with.
Prints what came of the files, and exits with 1 where anything failed.
"""

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from scripts.fuzz_decode import damaged
from tlray.errors import BackboneError
from tlray.models.weights.read import read_weights

ROOT = Path(__file__).parent.parent
MEMORY = 2**30  # bytes; the whole files have some 10 kB
SECONDS = 60  # for AT_ONCE files, an import of torch included
AT_ONCE = 500
GOOD = ("weights", "refused")
ENOUGH = 20  # failures, after which nothing new is learnt


def originals() -> list[tuple[str, bytes]]:
    """(ending, contents) of what is damaged."""
    tensors = {
        "conv.weight": torch.arange(288.0).reshape(4, 8, 3, 3),
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.zeros(3, 9, dtype=torch.bfloat16),
    }
    files = [(".safetensors", save(tensors, {"arch": "resnet18", "mean": "0.5,0.5,0.5"}))]
    for content in (tensors, {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}):
        for as_archive in (True, False):
            sink = io.BytesIO()
            torch.save(content, sink, _use_new_zipfile_serialization=as_archive)
            files.append((".pth", sink.getvalue()))
    return files


def file_of(files: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """File `number` of `seed`, damaged."""
    ending, data = files[random.Random(f"which/{seed}/{number}").randrange(len(files))]
    return ending, damaged([data], seed, number)


def outcome(path: Path) -> str:
    """What reading the file comes to: one of GOOD, or what is wrong."""
    try:
        file = read_weights(str(path))
    except BackboneError as error:
        return "refused" if "\n" not in str(error) else f"a reason of several lines: {error}".replace("\n", " ")
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}".replace("\n", " ")
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in file.tensors.items()):
        return "holds what is no tensor"
    return "weights"


def child(seed: int, first: int, stop: int) -> None:
    """Read files first..stop, a line on standard output for each."""
    warnings.simplefilter("ignore")  # torch's, of odd pickles
    files = originals()
    with tempfile.TemporaryDirectory(prefix="tlray-fuzz-") as folder:
        for ending, data in files:
            (Path(folder) / f"whole{ending}").write_bytes(data)
            outcome(Path(folder) / f"whole{ending}")  # loads what is loaded late
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, stop):
            ending, data = file_of(files, seed, number)
            path = Path(folder) / f"w{ending}"
            path.write_bytes(data)
            os.write(sys.stdout.fileno(), (outcome(path) + "\n").encode(errors="replace"))


def outcomes(seed: int, first: int, stop: int) -> Iterator[tuple[int, str]]:
    """Each file's number and outcome; a child that ends or hangs is an outcome too, and the next goes on after it."""
    while first < stop:
        end = min(stop, first + AT_ONCE)
        command = [sys.executable, "-m", "scripts.fuzz_weights", "--child", f"{seed}", f"{first}", f"{end}"]
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=SECONDS)
            lines, ended = done.stdout, f"ended the process ({done.returncode})"
        except subprocess.TimeoutExpired as late:
            lines, ended = late.stdout or b"", f"took more than {SECONDS} s"
        for line in lines.decode(errors="replace").splitlines():
            yield first, line
            first += 1
        if first < end:
            yield first, ended
            first += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Read randomly damaged weights files")
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
    for number, result in outcomes(arguments.seed, arguments.first, arguments.first + arguments.count):
        seen[result if result in GOOD else "failed"] += 1
        if result not in GOOD:
            print(f"file {number} of seed {arguments.seed}: {result}", flush=True)
        if arguments.keep and (result not in GOOD or arguments.count == 1):
            arguments.keep.mkdir(parents=True, exist_ok=True)
            ending, data = file_of(files, arguments.seed, number)
            (arguments.keep / f"{arguments.seed}-{number}{ending}").write_bytes(data)
        if seen["failed"] == ENOUGH:
            print(f"stopped after {ENOUGH} failures")
            break
    print(json.dumps({**seen, "count": seen.total(), "seconds": round(time.monotonic() - started, 1)}))
    return 1 if seen["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
