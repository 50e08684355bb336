"""What the programs of `benchmarks.ingest` share: their work, and what passes over the images cost.

    work = read_work()                                  # of the file that the first argument names
    measure(work, one_pass)                             # one_pass() gives batches of uint8 images; prints JSON

A pass that is not counted comes first, so that imports, workers and caches are there. CPU is then that of this process
and everything below it, what has ended included. It needs nothing of tlray: the peers may have a Python of their own.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TICKS = os.sysconf("SC_CLK_TCK")
SIZE = 224
BATCH = 32
NUM_WORKERS = 2  # threads or processes that decode
NUM_SAMPLES = 64  # images whose pixels are kept, to be compared

Batch = np.ndarray | Sequence[np.ndarray]  # of images (3, 224, 224) or (224, 224, 3) uint8


@dataclass(frozen=True)
class Work:
    """What one program is to do."""

    images: str  # folder of class folders of JPEGs
    num_images: int
    passes: int  # that are counted
    sample: str  # where to save some images of the first pass; "": nowhere
    settings: dict[str, Any]  # the program's own

    @property
    def paths(self) -> list[Path]:
        return sorted(Path(self.images).glob("*/*.jpg"))


def read_work() -> Work:
    return Work(**json.loads(Path(sys.argv[1]).read_text()))


def measure(work: Work, one_pass: Callable[[], Iterable[Batch]]) -> None:
    """Count the passes; the last line that it prints has cpu_ms and wall_ms, each per image."""
    samples: list[np.ndarray] = []
    num_images = 0
    for batch in one_pass():
        num_images += len(batch)
        samples += [_upright(image) for image in batch[: max(0, NUM_SAMPLES - len(samples))]]
    assert num_images == work.num_images, f"{num_images} of {work.num_images} images"
    if work.sample:
        np.save(work.sample, np.stack(samples))
    cpu, wall = tree_cpu(), time.perf_counter()
    for _ in range(work.passes):
        assert sum(len(batch) for batch in one_pass()) == work.num_images
    wall, cpu = time.perf_counter() - wall, tree_cpu() - cpu
    per_image = 1000 / work.passes / work.num_images
    print(json.dumps({"cpu_ms": cpu * per_image, "wall_ms": wall * per_image}))


def tree_cpu() -> float:
    """Seconds, user and system, of this process, all below it and those of them that have ended and are buried."""
    cpu: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(name)) is not None:
            cpu[int(name)] = sum(map(int, fields[11:15])) / TICKS
            children.setdefault(int(fields[1]), []).append(int(name))
    total, waiting = 0.0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += cpu[pid]
        waiting += children.get(pid, [])
    return total


def _stat(pid: str) -> list[str] | None:
    """Fields 3 and on of proc(5); None when the process has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _upright(image: np.ndarray) -> np.ndarray:
    """-> (224, 224, 3), a copy"""
    return np.array(image if image.shape == (SIZE, SIZE, 3) else image.transpose(1, 2, 0))
