"""Does memory grow with the number of images? Peak resident memory of the pass and of trials, 1,000 and 20,000 images.

    python -m benchmarks.memory [--images 1000 20000]

Small images of noise, a small backbone at 64 pixels, linear probes and a partial trial on its activations. Peaks are
the kernel's (VmHWM) of the processes by what they ran: `chunk_task` is the activation pass (in a process that planned
before), `probe_group_task` the linear probes, the rest Tune's. The last line is one JSON object: pass_memory_ratio,
probe_memory_ratio and trial_memory_ratio, large over small.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.noise_images import write_images
from benchmarks.process_tree import run_measured

PIXELS = 64
NAMES = {"pass": "chunk_task", "probe": "probe_group_task", "trial": "ImplicitFunc"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[1000, 20000])
    counts = parser.parse_args().images
    print(describe())
    print(f"{'images':>7} {'pass MB':>8} {'probe MB':>9} {'trial MB':>9}")
    peaks: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        for count in counts:
            images = Path(name) / f"images-{count}"
            write_images(images, 0, count, PIXELS)
            program = [sys.executable, "-m", "benchmarks.programs.small_sweep", str(images), f"{name}/storage-{count}"]
            found = run_measured(program).peak_bytes
            by_role = {
                role: max((peak for process, peak in found.items() if part in process), default=0)
                for role, part in NAMES.items()
            }
            assert all(by_role.values()), f"not all of {NAMES} were seen among {sorted(found)}"
            peaks.append(by_role)
            print(f"{count:7} " + " ".join(f"{peak / 1e6:8.0f}" for peak in by_role.values()), flush=True)
    small, large = peaks
    print(json.dumps({f"{role}_memory_ratio": round(large[role] / small[role], 3) for role in NAMES}))


if __name__ == "__main__":
    main()
