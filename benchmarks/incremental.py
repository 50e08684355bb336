"""What do 5 % new images cost, against the first activation pass?

    python -m benchmarks.incremental [--images 2000]

Images of noise, mobilenet_v2 at 224 pixels, two cuts. Each pass runs in a process of its own, so what it takes to build
and fold the model is in both; planning is in neither. The last line is one JSON object: incremental_ratio (CPU) and
incremental_wall_ratio.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.noise_images import write_images
from benchmarks.process_tree import run_measured

PIXELS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    number = parser.parse_args().images
    print(describe())
    print(f"{'pass':12} {'images':>7} {'CPU s':>8} {'wall s':>8}")
    costs = {}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        images = Path(name) / "images"
        for label, start, stop in (("first", 0, number), ("5 % more", number, number + number // 20)):
            write_images(images, start, stop, PIXELS)
            program = [sys.executable, "-m", "benchmarks.programs.activation_pass", str(images), f"{name}/storage"]
            costs[label] = cost = json.loads(run_measured(program).last_line)
            print(f"{label:12} {cost['images']:7} {cost['cpu']:8.1f} {cost['wall']:8.1f}", flush=True)
    first, more = costs["first"], costs["5 % more"]
    assert more["images"] == number // 20, "the second pass computed something else than the new images"
    outcome = {
        "incremental_ratio": more["cpu"] / first["cpu"],
        "incremental_wall_ratio": more["wall"] / first["wall"],
    }
    print(json.dumps({name: round(value, 4) for name, value in outcome.items()}))


if __name__ == "__main__":
    main()
