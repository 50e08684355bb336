"""Does a run take what its plan says, and is half of that kept as a budget?

    python -m benchmarks.estimates

Ants and bees, backbones with ImageNet weights: linear probes and partial trials on kept activations; fine-tuning of all
blocks on images; a gradual thaw of a second backbone. Each is planned on this machine and run, the time from the plan
to DONE beside the plan's. Then the second once more with half of its estimate as budget.hours. The last line is one
JSON object: actual_over_estimate for each, and budget_used (of the budget) with the number of exports.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe, shared_folder
from tlray.runs.plan import load_plan

SHARED = shared_folder()
MOBILENET = {"id": "timm/mobilenetv2_035", "weights": f"{SHARED}/weights/mobilenetv2_035.safetensors"}
SQUEEZENET = {"id": "torchvision/squeezenet1_0", "weights": f"{SHARED}/weights/squeezenet1_0.safetensors"}
BASELINE = {"backbone": {"id": "timm/resnet10t", "weights": "none", "input_size": 96}, "training": {"epochs": 2}}
CONFIGS: dict[str, dict[str, Any]] = {
    "activations": {
        "backbones": [{**MOBILENET, "input_size": 160}],
        "strategies": [
            {"strategy": "linear_probe", "solver": "gradient"},
            {"strategy": "partial", "trainable_blocks": 4},
        ],
        "search_space": {"lr": {"grid": [0.0003, 0.001, 0.003, 0.01]}},
        "training": {"epochs": 10},
    },
    "images": {
        "backbones": [{**MOBILENET, "input_size": 160}],
        "strategies": ["full"],
        "search_space": {"lr": {"grid": [0.0001, 0.0003, 0.001, 0.003]}},
        "training": {"epochs": 16},
    },
    "gradual": {
        "backbones": [{**SQUEEZENET, "input_size": 128}],
        "strategies": [{"strategy": "gradual", "unfreeze": {2: 3, 5: "all"}}],
        "search_space": {"lr": {"grid": [0.0003, 0.001]}},
        "training": {"epochs": 8},
    },
}


def main() -> None:
    print(describe())
    print(f"{'run':<22} {'estimate s':>10} {'actual s':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(name)
        ratios, estimates = {}, {}
        for kind, config in CONFIGS.items():
            run = run_one(folder, kind, config)
            estimates[kind] = estimate_of(run)
            ratios[kind] = seconds_of(run) / estimates[kind]
            print_row(kind, estimates[kind], seconds_of(run))
        budget = estimates["images"] / 2
        run = run_one(folder, "half", {**CONFIGS["images"], "budget": {"hours": budget / 3600}})
        print_row("images, half as budget", budget, seconds_of(run))
        outcome = {
            "actual_over_estimate": {kind: round(ratio, 3) for kind, ratio in ratios.items()},
            "budget_used": round(seconds_of(run) / budget, 3),
            "exports": len(list(run.glob("exports/*/SHA256SUMS"))),
        }
    print(json.dumps(outcome))


def run_one(folder: Path, kind: str, config: dict[str, Any]) -> Path:
    """-> the run folder of a whole run, nothing of which is in a store already."""
    whole = {
        "name": kind,
        "storage": str(folder / kind),
        "data": {"train": f"{SHARED}/data/hymenoptera/train", "test": f"{SHARED}/data/hymenoptera/val"},
        "baseline": BASELINE,
        "sweep": {"scheduler": "fifo"},
        **config,
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(whole))
    subprocess.run([sys.executable, "-m", "tlray.cli", "run", str(path)], check=True, stdout=subprocess.DEVNULL)
    (done,) = (folder / kind / kind).glob("*/DONE")
    return done.parent


def estimate_of(run: Path) -> float:
    estimate = load_plan(str(run)).estimate
    assert estimate is not None
    return estimate.seconds


def seconds_of(run: Path) -> float:
    """From the moment when the plan was written down to the last write of the run."""
    return (run / "DONE").stat().st_mtime - (run / "config.yaml").stat().st_mtime


def print_row(kind: str, expected: float, actual: float) -> None:
    print(f"{kind:<22} {expected:10.1f} {actual:9.1f} {actual / expected:6.2f}", flush=True)


if __name__ == "__main__":
    main()
