"""How long would a sweep of 200 trials over a million images take on 1 to 512 GPUs, and what would its nodes cost?

    python -m benchmarks.scale_sim [--gpu-speed 50] [--cores-per-gpu 8]        # five minutes on two cores
    python -m benchmarks.scale_sim --no-check                                  # one minute, without the real runs
    python -m benchmarks.scale_sim --no-check --plan RUN --gpu-speed 1         # as RUN's plan measured it on a GPU

What one image costs in each step is measured on this machine by `tlray plan` (ants and bees, mobilenetv2_035 at 160
pixels and squeezenet1_0 at 128, one core a worker): decoding, the frozen prefix, the step of what trains. A
discrete-event simulation (scale_events.py) puts a sweep together from that: the activation pass in chunks, linear
probes as one batched head a backbone, trials one after the other on whatever worker is free, ASHA's rungs with made-up
curves, nodes that take minutes to come and are given back when idle.

*check*: the same simulation against real runs of tlray here with 1, 2 and 4 worker processes, with shared activations
and without, from the plan to DONE. Workers then share this machine's cores: how much work so many processes get done at
once is measured first (side_by_side.py). The largest error is in the last line.

A GPU is --gpu-speed times as fast as one core of this machine in everything but decoding, which --cores-per-gpu cores
do beside it; that figure is an assumption (about a T4 against a server's core), the rest is measured. The last line is
one JSON object: capacity, errors_percent by run, worst_error_percent, shared and alone ({GPUs: [hours, node-hours]}),
speed-up.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe
from benchmarks.scale_check import BACKBONES, CHECKED, check, small_config
from benchmarks.scale_events import Cluster, Job, Result, Stage, simulate
from benchmarks.side_by_side import measure_capacity
from tlray.runs.budget.costs import CHECKPOINT_SECONDS
from tlray.runs.budget.estimate import EXPORT_SECONDS, PROBE_SHARE, REPORT_SECONDS, TUNE_SECONDS
from tlray.runs.budget.machines import USUAL_PROCESS
from tlray.runs.plan import Plan, load_plan

STRATEGIES = [{"strategy": "linear_probe", "solver": "gradient"}, {"strategy": "partial", "trainable_blocks": 3}]
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
IMAGES, TRIALS, EPOCHS = 1_000_000, 200, 10
VALIDATION_SHARE = 0.1
IMAGES_PER_CHUNK = 512
GRACE_EPOCHS, REDUCTION = 1, 3
NODE_SECONDS, IDLE_SECONDS = 180.0, 300.0  # of a cloud's GPU node, and of the autoscaler
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-speed", type=float, default=50.0, help="cores of this machine that one GPU equals")
    parser.add_argument("--cores-per-gpu", type=float, default=8.0, help="that decode for it")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--plan", help="run folder whose plan holds the costs, instead of measuring them")
    options = parser.parse_args()
    print(describe())
    outcome: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(name)
        if not options.no_check:
            outcome["capacity"] = capacity = [round(work, 2) for work in measure_capacity(max(CHECKED) + 1)]
            print(f"work of 1, 2, ... processes at once: {', '.join(map(str, capacity[1:]))}")
            outcome["errors_percent"] = check(folder, capacity)
            outcome["worst_error_percent"] = max(abs(error) for error in outcome["errors_percent"].values())
        costs = measured_costs(load_plan(options.plan) if options.plan else planned(folder))
    for cost in costs:
        print(
            f"{cost.backbone}: {1000 * cost.decode:.2f} ms to decode an image, {1000 * cost.prefix:.2f} its prefix, "
            f"{1000 * cost.suffix:.2f} a step of what trains behind it, {1000 * cost.probe:.3f} of a linear probe"
        )
    outcome |= scale(costs, options.gpu_speed, options.cores_per_gpu)
    print(json.dumps(outcome))


@dataclass(frozen=True)
class Costs:
    """Seconds for one image on one core, and what is read of it."""

    backbone: str
    decode: float
    prefix: float  # up to where the partial trials are cut
    whole: float  # up to the head
    suffix: float  # a step of what trains behind the cut: training and validation images, averaged
    probe: float  # likewise of a single linear probe on features
    bytes_at_cut: int  # of an image, as they are read
    bytes_at_head: int
    draws: float  # of an image that go through the prefix when activations are kept: validation images need one


def planned(folder: Path) -> Plan:
    config = {**small_config(folder / "measured", "always"), "name": "measured", "backbones": BACKBONES}
    path = folder / "measured.yaml"
    path.write_text(yaml.safe_dump({**config, "strategies": STRATEGIES}))
    program = [sys.executable, "-m", "tlray.cli", "plan", str(path), "--json"]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    return Plan.model_validate_json(done.stdout.strip().splitlines()[-1])


def measured_costs(plan: Plan) -> list[Costs]:
    assert plan.estimate is not None
    threads = plan.estimate.machines.pass_threads
    seconds = {cost.trial_id: cost.seconds for cost in plan.estimate.costs}
    kinds = {trial.trial_id: trial for trial in plan.trials}

    def an_image(trial_id: str) -> float:
        images = plan.num_images
        passes = kinds[trial_id].epochs * (images["train"] + images["val"]) + images["test"]
        checkpoints = kinds[trial_id].epochs * CHECKPOINT_SECONDS  # which do not grow with the images
        return max(0.0, seconds[trial_id] - checkpoints) / passes

    costs = []
    for backbone in dict.fromkeys(source.backbone.id for source in plan.activations):
        sources = sorted((s for s in plan.activations if s.backbone.id == backbone), key=lambda s: s.num_frozen)
        partial, whole = sources[0], sources[-1]
        costs.append(
            Costs(
                backbone=backbone,
                decode=partial.decode_seconds * threads,
                prefix=partial.prefix_seconds * threads,
                whole=whole.prefix_seconds * threads,
                suffix=an_image(partial.trials[0]),
                probe=an_image(whole.trials[0]),
                bytes_at_cut=partial.bytes_per_image,
                bytes_at_head=whole.bytes_per_image,
                draws=(1 - VALIDATION_SHARE) * max(1, partial.views) + VALIDATION_SHARE,
            )
        )
    return costs


def scale(costs: list[Costs], gpu_speed: float, cores: float) -> dict[str, Any]:
    """The table, and the same as JSON."""
    print(f"{IMAGES:,} images, {TRIALS} trials, {EPOCHS} epochs at most (ASHA), {len(costs)} backbones; a GPU is")
    nodes = f"nodes take {NODE_SECONDS:g} s to come and {IDLE_SECONDS:g} s to go"
    print(f"{gpu_speed:g} cores, {cores:g} more decode for it; {nodes}")
    columns = f"{'shared: hours':>14} {'node-hours':>11} {'alone: hours':>13} {'node-hours':>11} {'speed-up':>9}"
    print(f"{'GPUs':>5} {columns}")
    found: dict[str, dict[int, list[float]]] = {"shared": {}, "alone": {}}
    for gpus in GPUS:
        cluster = Cluster(gpus, NODE_SECONDS, IDLE_SECONDS)
        shared = simulate(shared_stages(costs, gpu_speed, cores), cluster)
        alone = simulate(alone_stages(costs, gpu_speed, cores), cluster)
        for name, result in (("shared", shared), ("alone", alone)):
            found[name][gpus] = [round(result.seconds / 3600, 3), round(result.node_seconds / 3600, 2)]
        print(f"{gpus:5} {_hours(shared)} {_hours(alone, 13)} {alone.seconds / shared.seconds:9.1f}", flush=True)
    speed_up = {gpus: round(found["alone"][gpus][0] / found["shared"][gpus][0], 2) for gpus in GPUS}
    return {**found, "speed_up": speed_up}


def _hours(result: Result, width: int = 14) -> str:
    return f"{result.seconds / 3600:{width}.2f} {result.node_seconds / 3600:11.1f}"


READ_BYTES_PER_SECOND = 1e9  # of activations from a node's disk


def shared_stages(costs: list[Costs], gpu_speed: float, cores: float) -> list[Stage]:
    """The frozen prefixes once, in chunks; the probes of a backbone as one head; the others behind their cut."""
    chunks = []
    for cost in costs:
        each = cost.draws * IMAGES_PER_CHUNK * max(cost.decode / cores, cost.whole / gpu_speed)
        chunks += [Job((each,))] * -(-IMAGES // IMAGES_PER_CHUNK)
    each_kind = TRIALS // (2 * len(costs))
    heads = 1 + PROBE_SHARE * (each_kind - 1)  # of the time of one
    probes = [
        Job((IMAGES * max(cost.bytes_at_head / READ_BYTES_PER_SECOND, heads * cost.probe / gpu_speed),) * EPOCHS)
        for cost in costs
    ]
    asha = Asha()
    partial = [
        asha.job(IMAGES * max(cost.bytes_at_cut / READ_BYTES_PER_SECOND, cost.suffix / gpu_speed))
        for _ in range(each_kind)
        for cost in costs
    ]
    return [
        Stage("frozen work", chunks, USUAL_PROCESS),
        Stage("linear probes", probes, 0.0),
        Stage("Ray Tune", [Job((TUNE_SECONDS,))], 0.0),
        Stage("trials", partial, USUAL_PROCESS),
        Stage("exports and report", [Job((USUAL_PROCESS + EXPORT_SECONDS + REPORT_SECONDS,))], 0.0),
    ]


def alone_stages(costs: list[Costs], gpu_speed: float, cores: float) -> list[Stage]:
    """Every trial decodes every image in every epoch and puts it through the whole network."""
    asha = Asha()
    trials = []
    for _ in range(TRIALS // (2 * len(costs))):
        for cost in costs:
            steps = (cost.whole + cost.probe, cost.prefix + cost.suffix)
            trials += [asha.job(IMAGES * max(cost.decode / cores, step / gpu_speed)) for step in steps]
    return [
        Stage("Ray Tune", [Job((TUNE_SECONDS,))], 0.0),
        Stage("trials", trials, USUAL_PROCESS),
        Stage("exports and report", [Job((USUAL_PROCESS + EXPORT_SECONDS + REPORT_SECONDS,))], 0.0),
    ]


class Asha:
    """Asynchronous successive halving over trials whose accuracies are drawn: who is at a rung first goes on."""

    def __init__(self) -> None:
        self._draw = random.Random(SEED)
        self._rungs: dict[int, list[float]] = {}

    def job(self, epoch_seconds: float) -> Job:
        score = self._draw.random()
        return Job((epoch_seconds,) * EPOCHS, self._rule(score))

    def _rule(self, score: float) -> Callable[[int], bool]:
        def goes_on(piece: int) -> bool:
            epoch = piece + 1
            if epoch not in rungs():
                return True
            reached = self._rungs.setdefault(epoch, [])
            reached.append(score)
            return sum(other > score for other in reached) < max(1, len(reached) / REDUCTION)

        return goes_on


def rungs() -> list[int]:
    epochs, rung = [], GRACE_EPOCHS
    while rung < EPOCHS:
        epochs.append(rung)
        rung *= REDUCTION
    return epochs


if __name__ == "__main__":
    main()
