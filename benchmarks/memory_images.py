"""Does memory grow with the number of images that are streamed? Peaks of driver and workers, 2,000 and 50,000 images.

    python -m benchmarks.memory_images [--images 2000 50000] [--rounds 3]

Small images of noise in a local folder are copied into prepared shards, and a small backbone trains on all of them at
64 pixels for an epoch, all blocks free, so that nothing is kept of them but what the loader keeps. Peaks are the
kernel's (VmHWM) of the processes by what they ran: `driver` is the process that plans and sweeps, `prepare` what plans
and copies images into shards, `trial` what trains. What a process happens to do after another moves its peak, so
each size runs several times, by turns. The last line is one JSON object: driver_memory_ratio and the others,
median of the large over median of the small.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.noise_images import write_images
from benchmarks.process_tree import run_measured
from benchmarks.programs.streamed_sweep import DRIVER

PIXELS = 64
NAMES = {"driver": (DRIVER,), "prepare": ("plan_task", "prepare_task"), "trial": ("ImplicitFunc",)}


def peak_of(parts: tuple[str, ...], peaks: Mapping[str, int]) -> int:
    """Of the processes whose names have one of the parts in them; 0 where there is none."""
    return max((peak for name, peak in peaks.items() if any(part in name for part in parts)), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[2000, 50000])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size, by turns (3); medians are compared")
    arguments = parser.parse_args()
    print(describe())
    print(f"{'images':>7} " + " ".join(f"{role + ' MB':>10}" for role in NAMES) + f"{'seconds':>9}")
    peaks: dict[int, list[dict[str, int]]] = {count: [] for count in arguments.images}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        for count in arguments.images:
            write_images(Path(name) / f"images-{count}", 0, count, PIXELS)
        for number in range(arguments.rounds):
            for count in arguments.images:
                storage = f"{name}/storage-{count}-{number}"
                peaks[count].append(measure(f"{name}/images-{count}", storage, count))
                shutil.rmtree(storage)
    small, large = (
        {role: statistics.median(peak[role] for peak in peaks[count]) for role in NAMES} for count in arguments.images
    )
    print(json.dumps({f"{role}_memory_ratio": round(large[role] / small[role], 3) for role in NAMES}))


def measure(images: str, storage: str, count: int) -> dict[str, int]:
    """One run in a session of its own; a line of the table is printed. -> the peak of each role in bytes."""
    usage = run_measured([sys.executable, "-m", "benchmarks.programs.streamed_sweep", images, storage])
    peaks = {role: peak_of(parts, usage.peak_bytes) for role, parts in NAMES.items()}
    assert all(peaks.values()), f"not all of {NAMES} were seen among {sorted(usage.peak_bytes)}"
    shown = " ".join(f"{peak / 1e6:10.0f}" for peak in peaks.values())
    print(f"{count:7} {shown}{usage.wall_seconds:9.0f}", flush=True)
    return peaks


if __name__ == "__main__":
    main()
