"""How good is what tlray chooses for a tenth of what trying everything costs?

    python -m benchmarks.choice [--folder FOLDER] [--data hymenoptera,dogcat,cifar10] [--seeds 0,1,2]

Three sets of real images (quality_parts/sets.py), four backbones with ImageNet weights at 112 pixels; three rates for
linear probes and for partial training, three rates with and without augmentation for fine-tuning all blocks: 48
configurations. Each seed draws other images to train on and to test; a set has as many seeds as give 1,000 answers to
test images, three at least. The exhaustive sweep trains all 48 to the end and chooses as tlray chooses. tlray gets the
same configuration with its own scheduler, a shortlist of two and budget.hours such that all its work is a tenth of the
exhaustive sweep's. The oracle is the configuration with the best mean test accuracy over the seeds.

Random search and ASHA (Li et al., MLSys 2020; on two workers) are replayed from the exhaustive sweep's rows and
learning curves at a tenth of its cost, 2,000 times each, and choose by validation accuracy. *Plain* ones pay for each
trial's own frozen work in every epoch, as trials do that share nothing; *sharing* ones pay what the same trials cost in
tlray's sweep. They pay for nothing else. Neither is charged for starting up.

Cost is work: the seconds of all trials, of the frozen work and of the ranking; starting Ray, planning, exports and the
report, which take the same half minute however large the sweep is, are not in it: `wall` has all of it.

FOLDER keeps the runs, by default only while this runs; what is finished there is not repeated. The last line is one
JSON object, means over the sets in points of test accuracy: regret_to_exhaustive_points (the exhaustive sweep's choice
minus tlray's), mean_regret_points (the oracle minus tlray's choice), random_regret_points and asha_regret_points
(plain), the same `_sharing`, exhaustive_regret_points, cost_fraction, wall_fraction; and `all`, a row for each run.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.choice_regret import regrets
from benchmarks.choice_rivals import Curve, asha, random_search
from benchmarks.machine import describe, shared_folder
from benchmarks.quality_parts.sets import SETS, make_set
from benchmarks.quality_parts.weights import backbone_entries
from tlray.config import ExportConfig
from tlray.ranking.result import load_ranking
from tlray.runs.board import load_leaderboard
from tlray.runs.budget.estimate import reserved_seconds, start_seconds
from tlray.runs.plan import Plan, load_plan
from tlray.runs.results import LeaderboardRow

SHARED = shared_folder()
EPOCHS, WORKERS = 5, 2
NUM_SEEDS = {"hymenoptera": 7}  # of 153 test images each; of other sets three
SHARE = 0.1  # of the exhaustive sweep's cost
BUSY = 0.8  # of two workers' time while trials last; the rest is spent on what is last and on starting the next
REPLAYS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the runs are kept")
    parser.add_argument("--data", default="hymenoptera,dogcat,cifar10")
    parser.add_argument("--seeds", help="the same for every set")
    options = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(options.folder or name).absolute()
        rows = {
            data: [compare(folder, data, seed) for seed in seeds_of(data, options.seeds)]
            for data in options.data.split(",")
        }
    of_sets = [regrets(of_set) for of_set in rows.values()]
    means = {key: round(statistics.mean(found[key] for found in of_sets), 3) for key in of_sets[0]}
    everything = [{key: row[key] for key in row if key != "scores"} for of_set in rows.values() for row in of_set]
    for key in ("cost_fraction", "wall_fraction"):
        means[key] = round(statistics.mean(row[key] for row in everything), 3)
    print(json.dumps({**means, "all": everything}))


def seeds_of(data: str, given: str | None) -> list[int]:
    return list(map(int, given.split(","))) if given else list(range(NUM_SEEDS.get(data, 3)))


def compare(folder: Path, data: str, seed: int) -> dict[str, Any]:
    """One row of the table, printed."""
    images = make_set(folder, SETS[data], SHARED, seed)
    everything, wall = run(folder, f"{data}-{seed}-oracle", config(images, seed))
    plan = load_plan(str(everything))
    leaderboard = load_leaderboard(str(everything))
    rows = [row for row in leaderboard.rows if row.rank is not None and not row.is_baseline]
    cost = work_of(everything, plan)

    baseline = sum(row.seconds for row in leaderboard.rows if row.is_baseline)
    allowed = (SHARE * cost / BUSY + baseline) / WORKERS + unavoidable_seconds(plan)
    allowed += seconds_to_plan(everything, wall) + frozen_seconds(plan, None) / WORKERS  # the latter for the ranking
    narrowed = {
        "ranking": {"shortlist": 2},
        "budget": {"hours": allowed / 3600},
        "sweep": {"max_concurrent_trials": WORKERS},
    }
    chosen, chosen_wall = run(folder, f"{data}-{seed}-choice", config(images, seed) | narrowed)
    champion = load_leaderboard(str(chosen)).champion
    assert champion is not None

    curves = [curve_of(everything, row, plan) for row in rows]
    rivals = {
        f"{name}{suffix}": rival(curves, SHARE * cost, plain=plain, replays=REPLAYS)
        for name, rival in (("random", random_search), ("asha", asha))
        for suffix, plain in (("", True), ("_sharing", False))
    }
    row = {
        "data": data,
        "seed": seed,
        "choice": accuracy(champion),
        "exhaustive": accuracy(rows[0]),
        "chosen": f"{champion.backbone} {champion.strategy} {champion.params['lr']:g}",
        **rivals,
        "cost_fraction": work_of(chosen, load_plan(str(chosen))) / cost,
        "wall_fraction": chosen_wall / wall,
        "exhaustive_work_seconds": cost,
    }
    row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(row), flush=True)
    return {**row, "scores": {configuration(one): accuracy(one) for one in rows}}


def configuration(row: LeaderboardRow) -> str:
    return f"{row.backbone} {row.strategy} {row.params['lr']:g} {row.params['augmentation']}"


def config(images: Path, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "data": {split: str(images / split) for split in ("train", "val", "test")},
        "backbones": backbone_entries(str(SHARED)),
        "strategies": [
            {"strategy": "linear_probe", "search_space": {"lr": {"grid": [0.0003, 0.003, 0.03]}}},
            {"strategy": "partial", "trainable_blocks": 3},
            {"strategy": "full", "search_space": {"augmentation": {"grid": ["none", "light"]}}},
        ],
        "search_space": {"lr": {"grid": [0.0001, 0.0003, 0.001]}},
        "training": {"epochs": EPOCHS, "batch_size": 16, "warmup_epochs": 0.5, "augmentation": "none"},
        "baseline": {
            "backbone": {"id": "timm/resnet10t", "weights": "none", "input_size": 64},
            "training": {"epochs": 1},
        },
        "activations": {"materialise": "always"},
        "sweep": {"scheduler": "fifo", "max_concurrent_trials": WORKERS},
    }


def run(folder: Path, name: str, settings: dict[str, Any]) -> tuple[Path, float]:
    """A whole run with nothing of it in a store already, unless it is there -> its folder, and its wall-clock."""
    place = folder / name
    seconds = place / "seconds"
    if not seconds.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(yaml.safe_dump({"name": "run", "storage": str(place), **settings}))
        started = time.monotonic()
        command = [sys.executable, "-m", "tlray.cli", "run", str(place / "config.yaml")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.write_text(str(time.monotonic() - started))
    (done,) = (place / "run").glob("*/DONE")
    return done.parent, float(seconds.read_text())


def work_of(run: Path, plan: Plan) -> float:
    """Seconds of all trials but the baseline, of the frozen work and of the ranking."""
    leaderboard = load_leaderboard(str(run))
    ids = {row.trial_id for row in leaderboard.rows if not row.is_baseline}
    trials = sum(row.seconds for row in leaderboard.rows if row.trial_id in ids)
    ranking = load_ranking(str(run))
    if ranking is None:
        return trials + frozen_seconds(plan, ids)
    (ranked,) = run.glob("ranking-*")
    scoring = sum(row.seconds for row in ranking.rows)
    return trials + frozen_seconds(plan, ids) + scoring + frozen_seconds(load_plan(str(ranked)), None)


def frozen_seconds(plan: Plan, trial_ids: set[str] | None) -> float:
    """What one core would take for the frozen work of these (all) trials, as measured; all cuts at once."""
    assert plan.estimate is not None
    deepest: dict[str, float] = {}
    for source in plan.activations:
        if trial_ids is None or not trial_ids.isdisjoint(source.trials):
            seconds = (source.num_draws - source.num_stored) * (source.decode_seconds + source.prefix_seconds)
            deepest[source.backbone.id] = max(seconds, deepest.get(source.backbone.id, 0.0))
    return sum(deepest.values()) * plan.estimate.machines.pass_threads


def unavoidable_seconds(plan: Plan) -> float:
    """By the clock, what a run takes however little it trains: starting processes, exports and the report."""
    assert plan.estimate is not None
    machines = plan.estimate.machines
    return reserved_seconds(ExportConfig(), machines) + start_seconds(machines)


def seconds_to_plan(run: Path, wall: float) -> float:
    """By the clock, from the start of a run's command until its plan was made."""
    began = (run / "DONE").stat().st_mtime - wall
    return max(0.0, (run / "plan.json").stat().st_mtime - began)


def accuracy(row: LeaderboardRow) -> float:
    """Points."""
    assert row.test_accuracy is not None
    return 100 * row.test_accuracy


def curve_of(run: Path, row: LeaderboardRow, plan: Plan) -> Curve:
    history = [json.loads(line) for line in (run / "trials" / row.trial_id / "history.jsonl").read_text().splitlines()]
    own, threads = 0.0, plan.estimate.machines.pass_threads if plan.estimate is not None else 1
    for source in plan.activations:
        if row.trial_id in source.trials:
            own = max(own, source.num_draws * (source.decode_seconds + source.prefix_seconds) * threads)
    return Curve(
        val=tuple(epoch["val_accuracy"] for epoch in history),
        test=accuracy(row),
        seconds=row.seconds,
        frozen_seconds=own,
    )


if __name__ == "__main__":
    main()
