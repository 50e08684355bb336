"""Does memory grow with the number of images that are streamed? Peaks of driver and workers, 2,000 and 50,000 images.

    python -m benchmarks.memory_images [--images 2000 50000]

Small images of noise in a local folder are copied into prepared shards, and a small backbone trains on all of them at
64 pixels for an epoch, all blocks free, so that nothing is kept of them but what the loader keeps. Peaks are the
kernel's (VmHWM) of the processes by what they ran: `driver` is the process that plans and sweeps, `prepare` what plans
and copies images into shards, `trial` what trains. The last line is one JSON object: driver_memory_ratio and the
others, large over small.
"""

import argparse
import json
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
    counts = parser.parse_args().images
    print(describe())
    print(f"{'images':>7} " + " ".join(f"{role + ' MB':>10}" for role in NAMES) + f"{'seconds':>9}")
    peaks: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        for count in counts:
            images = Path(name) / f"images-{count}"
            write_images(images, 0, count, PIXELS)
            program = "benchmarks.programs.streamed_sweep"
            usage = run_measured([sys.executable, "-m", program, str(images), f"{name}/storage-{count}"])
            by_role = {role: peak_of(parts, usage.peak_bytes) for role, parts in NAMES.items()}
            assert all(by_role.values()), f"not all of {NAMES} were seen among {sorted(usage.peak_bytes)}"
            peaks.append(by_role)
            shown = " ".join(f"{peak / 1e6:10.0f}" for peak in by_role.values())
            print(f"{count:7} {shown}{usage.wall_seconds:9.0f}", flush=True)
    small, large = peaks
    print(json.dumps({f"{role}_memory_ratio": round(large[role] / small[role], 3) for role in NAMES}))


if __name__ == "__main__":
    main()
