"""The simulation of a sweep beside real runs of tlray on this machine: stage by stage, from the plan to DONE.

errors = check(folder, capacity)        # {"activations/2": -0.6, ...} percent
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import shared_folder
from benchmarks.scale_events import Cluster, Job, Stage, simulate
from tlray.runs.budget.estimate import REPORT_SECONDS, STARTED_TOGETHER, TUNE_SECONDS, group_seconds
from tlray.runs.plan import Plan, load_plan

SHARED = shared_folder()
BACKBONES = [
    {"id": "timm/mobilenetv2_035", "weights": f"{SHARED}/weights/mobilenetv2_035.safetensors", "input_size": 160},
    {"id": "torchvision/squeezenet1_0", "weights": f"{SHARED}/weights/squeezenet1_0.safetensors", "input_size": 128},
]
BASELINE = {"backbone": {"id": "timm/resnet10t", "weights": "none", "input_size": 64}, "training": {"epochs": 1}}
CHECKED = (1, 2, 4)  # worker processes


def check(folder: Path, capacity: Sequence[float]) -> dict[str, float]:
    """Simulated against real seconds -> by how many percent each is off. `capacity`: of 0, 1, ... processes at once."""
    errors = {}
    print(
        f"{'trials read':<14} {'workers':>7} {'simulated s':>12} {'real s':>8} {'error':>7}  simulated/real s of stages"
    )
    for materialise, words in (("always", "activations"), ("never", "images")):
        for workers in CHECKED:
            run = real_run(folder, materialise, workers)
            plan = load_plan(str(run))
            real = real_stages(run, plan)
            result = simulate(stages_of(plan, workers), Cluster(workers, capacity=capacity.__getitem__))
            error = round(100 * (result.seconds / sum(real.values()) - 1), 1)
            errors[f"{words}/{workers}"] = error
            stages = {**result.stages, "trials": result.stages["Ray Tune"] + result.stages["trials"]}
            each = ", ".join(f"{name} {stages[name]:.0f}/{seconds:.0f}" for name, seconds in real.items())
            print(
                f"{words:<14} {workers:7} {result.seconds:12.1f} {sum(real.values()):8.1f} {error:6.1f}%  {each}",
                flush=True,
            )
    return errors


def real_stages(run: Path, plan: Plan) -> dict[str, float]:
    """Seconds of each stage, by when what it writes last was written."""
    assert plan.estimate is not None
    groups = {cost.trial_id: cost.group for cost in plan.estimate.costs}
    written = {trial: (run / "trials" / trial / "result.json").stat().st_mtime for trial in groups}
    ends = {
        "frozen work": (run / "activations.json").stat().st_mtime if (run / "activations.json").exists() else 0.0,
        "linear probes": max((written[trial] for trial, group in groups.items() if group is not None), default=0.0),
        "trials": max(written[trial] for trial, group in groups.items() if group is None),
        "report": (run / "DONE").stat().st_mtime,
    }
    seconds, before = {}, (run / "config.yaml").stat().st_mtime
    for name, end in ends.items():
        if end:
            seconds[name], before = end - before, end
    return seconds


def real_run(folder: Path, materialise: str, workers: int) -> Path:
    """-> the run folder of a sweep on images, with nothing kept from before."""
    name = f"{materialise}-{workers}"
    config = {
        **small_config(folder / name, materialise),
        "name": name,
        "backbones": BACKBONES[:1],
        "strategies": [
            {"strategy": "linear_probe", "solver": "gradient"},
            {"strategy": "partial", "trainable_blocks": 6},
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    program = [sys.executable, "-m", "benchmarks.programs.limited_run", str(path), str(workers)]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    (run,) = (folder / name / name).iterdir()
    return run


def small_config(storage: Path, materialise: str) -> dict[str, Any]:
    return {
        "storage": str(storage),
        "data": {"train": f"{SHARED}/data/hymenoptera/train", "test": f"{SHARED}/data/hymenoptera/val"},
        "baseline": BASELINE,
        "search_space": {"lr": {"grid": [0.0003, 0.001, 0.003, 0.01]}},
        "training": {"epochs": 6},
        "sweep": {"scheduler": "fifo"},
        "activations": {"materialise": materialise},
        "export": {"top_k": 0},
    }


def stages_of(plan: Plan, workers: int) -> list[Stage]:
    """The stages of a planned run on one machine. Its activation pass is one process, measured with its threads."""
    estimate = plan.estimate
    assert estimate is not None
    seconds = {stage.name: stage.seconds for stage in estimate.stages}
    grouped = group_seconds([cost for cost in estimate.costs if cost.group is not None])
    frozen = seconds.get("frozen work", 0.0)
    stages = [Stage("frozen work", [Job((frozen,))], 0.0)] if frozen else []
    stages += [Stage("linear probes", [Job(tuple(grouped.values()))], 0.0)] if grouped else []
    alone = [cost for cost in estimate.costs if cost.group is None]
    trials = [Job((cost.seconds,)) for cost in alone]
    speed_up = sum(cost.seconds for cost in alone) / sum(cost.overlapped_seconds or cost.seconds for cost in alone)
    process = estimate.machines.process_seconds
    stages.append(Stage("Ray Tune", [Job((TUNE_SECONDS,))], 0.0))
    stages.append(Stage("trials", trials, process * STARTED_TOGETHER if workers > 1 else process, speed_up))
    return [*stages, Stage("report", [Job((process + REPORT_SECONDS,))], 0.0)]
