"""The same sweep by tlray, by the recipe of Ray's documentation and by a hand-written script: what does each cost?

    python -m benchmarks.sweep_vs_recipe [--quick] [--save FILE]        # about an hour, nearly all of it the recipe's

Ants and bees (244 images train, 153 score), mobilenet_v2 with ImageNet weights and resnet18 with random ones. *probe*:
linear probes with 8 learning rates, 10 epochs each. *mixed*: the same and 4 rates with the last stage free. Programs
run in fresh processes on the same cores, one after the other; CPU seconds are those of the whole process tree. *cold*
starts with nothing stored, *warm* finds what cold has left. The recipe shares nothing between trials, so its mixed part
is the sum of its probes and its partial trials (with Ray started once more, some seconds of many hundred). The script
extracts features and trains heads; it has no partial trials. `floor` is one decode of each image, one forward of it for
each backbone and all steps of the heads, measured inside the script without what it takes to start. All three normalise
images as the weights' file says.

The last line is one JSON object: probe_cpu_ratio, probe_wall_ratio, mixed_cpu_ratio, mixed_wall_ratio (recipe / tlray,
cold), script_cpu_ratio (tlray / script, cold), floor_ratio (tlray's cold probes / floor), worst_accuracy_delta and
mean_accuracy_delta (tlray minus recipe, points, over all trials).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, shared_folder
from benchmarks.process_tree import Usage, run_measured
from benchmarks.sweep_work import make_work, write_work

Row = dict[str, Any]


class Comparison:
    """Runs programs on parts of the work and remembers what they cost and what they found."""

    def __init__(self, folder: Path, shared: Path, quick: bool) -> None:
        self._folder, self._shared, self._quick = folder, shared, quick
        self.usage: dict[str, Usage] = {}

    def run(self, label: str, program: str, *, probes: bool, partials: bool, storage: str = "") -> Any:
        """What the program printed last. `storage` tells runs apart that are to share activations, or not to."""
        folder = self._folder / (storage or label.replace(" ", "-"))
        work = make_work(self._folder, self._shared, probes=probes, partials=partials, quick=self._quick)
        path = self._folder / f"{label.replace(' ', '-')}.json"
        write_work(type(work)(**{**vars(work), "storage": str(folder)}), path)
        usage = run_measured([sys.executable, "-m", f"benchmarks.programs.{program}", str(path)])
        self.usage[label] = usage
        print(f"{label:26} {usage.cpu_seconds:9.1f} {usage.wall_seconds:9.1f}", flush=True)
        return json.loads(usage.last_line)

    def cpu(self, *labels: str) -> float:
        return sum(self.usage[label].cpu_seconds for label in labels)

    def wall(self, *labels: str) -> float:
        return sum(self.usage[label].wall_seconds for label in labels)


def keyed(rows: list[Row]) -> dict[tuple[str, str, float], float]:
    return {(row["backbone"], row["strategy"], row["lr"]): row["accuracy"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rates, 2 epochs: to try it out")
    parser.add_argument("--save", type=Path, help="keep everything that was measured in this file")
    options = parser.parse_args()
    print(describe())
    print(f"{'program':26} {'CPU s':>9} {'wall s':>9}")
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        do = Comparison(Path(name), shared_folder(), options.quick)
        ours_probe = do.run("tlray probe cold", "sweep", probes=True, partials=False, storage="probe")
        do.run("tlray probe warm", "sweep", probes=True, partials=False, storage="probe")
        script = do.run("script probe", "script", probes=True, partials=False)
        ours_mixed = do.run("tlray mixed cold", "sweep", probes=True, partials=True, storage="mixed")
        do.run("tlray mixed warm", "sweep", probes=True, partials=True, storage="mixed")
        recipe = do.run("recipe probe", "recipe", probes=True, partials=False)
        recipe += do.run("recipe partial", "recipe", probes=False, partials=True)
    ours, theirs, scripted = keyed(ours_mixed), keyed(recipe), keyed(script["rows"])
    print(f"script: floor {script['floor']:.1f} CPU s, its heads alone {script['training']:.1f} CPU s")
    print(f"\n{'trial':44} {'tlray %':>8} {'recipe %':>9} {'script %':>9}")
    for key in sorted(ours):
        by_script = f"{100 * scripted[key]:9.1f}" if key in scripted else f"{'':9}"
        label = f"{key[0]} {key[1]} lr={key[2]:g}"
        print(f"{label:44} {100 * ours[key]:8.1f} {100 * theirs[key]:9.1f} {by_script}")
    deltas = [100 * (ours[key] - theirs[key]) for key in ours]
    outcome = {
        "probe_cpu_ratio": do.cpu("recipe probe") / do.cpu("tlray probe cold"),
        "probe_wall_ratio": do.wall("recipe probe") / do.wall("tlray probe cold"),
        "script_cpu_ratio": do.cpu("tlray probe cold") / do.cpu("script probe"),
        "mixed_cpu_ratio": do.cpu("recipe probe", "recipe partial") / do.cpu("tlray mixed cold"),
        "mixed_wall_ratio": do.wall("recipe probe", "recipe partial") / do.wall("tlray mixed cold"),
        "floor_ratio": do.cpu("tlray probe cold") / script["floor"],
        "worst_accuracy_delta": min(deltas),
        "mean_accuracy_delta": statistics.mean(deltas),
    }
    if options.save is not None:
        measured = {
            label: {"cpu": usage.cpu_seconds, "wall": usage.wall_seconds, "cpu_by_name": usage.cpu_by_name}
            for label, usage in do.usage.items()
        }
        rows = {"tlray": ours_mixed, "tlray_probe": ours_probe, "recipe": recipe, "script": script}
        options.save.write_text(json.dumps({"usage": measured, "rows": rows, **outcome}, indent=1))
    print(json.dumps({name: round(value, 3) for name, value in outcome.items()}))


if __name__ == "__main__":
    main()
