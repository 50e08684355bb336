"""The activation pass by itself, in this process.

    python -m benchmarks.programs.activation_pass IMAGES STORAGE

Prints what the pass alone has cost, as one JSON line: CPU seconds of the process, wall seconds, images.
"""

import json
import sys
import time

from tlray.activations.local_pass import compute_here
from tlray.config import RunConfig
from tlray.planning.planner import plan_run
from tlray.runs.prepare import new_run_uri
from tlray.training.worker import local_worker


def main(images: str, storage: str) -> None:
    config = RunConfig.model_validate(
        {
            "name": "pass",
            "storage": storage,
            "data": {"train": images},
            "backbones": [{"id": "torchvision/mobilenet_v2", "weights": "none"}],
            "strategies": [
                {"strategy": "linear_probe", "solver": "gradient"},
                {"strategy": "partial", "trainable_blocks": 5},
            ],
            "training": {"augmentation": "none"},
            "activations": {"materialise": "always"},
        }
    )
    planned = plan_run(config)
    computed = [0]

    def progress(done: int, total: int) -> None:
        computed[0] = done

    cpu, wall = time.process_time(), time.perf_counter()
    sources = planned.plan.activations
    device = local_worker().device
    compute_here(new_run_uri(config), planned.config, planned.manifest, sources, device, progress)
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "images": computed[0]}
    print(json.dumps(cost))


if __name__ == "__main__":
    main(*sys.argv[1:])
