"""What do more linear-probe trials cost? From 1 to 256 learning rates on one backbone, each sweep with nothing stored.

    python -m benchmarks.growth                 # about five minutes

Ants and bees, mobilenet_v2 with ImageNet weights, 10 epochs; CPU seconds of the whole process tree. The last line is
one JSON object: cost_32_over_1 and cost_256_over_4 (CPU), and the same of the wall clock.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import describe, shared_folder
from benchmarks.process_tree import Usage, run_measured
from benchmarks.sweep_work import make_work, write_work

COUNTS = (1, 4, 16, 32, 64, 256)


def main() -> None:
    print(describe())
    print(f"{'trials':>6} {'CPU s':>8} {'wall s':>8}")
    usage: dict[int, Usage] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(name)
        work = make_work(folder, shared_folder(), probes=True, partials=False, quick=False)
        for count in COUNTS:
            rates = tuple(float(rate) for rate in np.geomspace(0.0003, 0.3, count))
            path = folder / f"{count}.json"
            one = dataclasses.replace(
                work, probe_rates=rates, backbones=work.backbones[:1], storage=str(folder / f"storage-{count}")
            )
            write_work(one, path)
            usage[count] = run_measured([sys.executable, "-m", "benchmarks.programs.sweep", str(path)])
            print(f"{count:6} {usage[count].cpu_seconds:8.1f} {usage[count].wall_seconds:8.1f}", flush=True)
    outcome = {
        "cost_32_over_1": usage[32].cpu_seconds / usage[1].cpu_seconds,
        "cost_256_over_4": usage[256].cpu_seconds / usage[4].cpu_seconds,
        "wall_32_over_1": usage[32].wall_seconds / usage[1].wall_seconds,
        "wall_256_over_4": usage[256].wall_seconds / usage[4].wall_seconds,
    }
    print(json.dumps({name: round(value, 3) for name, value in outcome.items()}))


if __name__ == "__main__":
    main()
