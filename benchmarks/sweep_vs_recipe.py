"""The same sweep by tlray, by the recipe of Ray's documentation and by a hand-written script: what does each cost?

    python -m benchmarks.sweep_vs_recipe [--quick] [--save FILE]        # over an hour, nearly all of it the recipe's
    python -m benchmarks.sweep_vs_recipe --recipe-probes 2 --recipe-partials 1        # under half an hour

Ants and bees (244 images train, 153 score), mobilenet_v2 with ImageNet weights and resnet18 with random ones. *probe*:
linear probes with 8 learning rates, 10 epochs each. *mixed*: the same and 4 rates with the last stage free. Programs
run in fresh processes on the same cores, one after the other; CPU seconds are those of the whole process tree. *cold*
starts with nothing stored, *warm* finds what cold has left. The recipe shares nothing between trials, so its mixed part
is the sum of its probes and its partial trials (with Ray started once more, some seconds of many hundred). The script
extracts features and trains heads; it has no partial trials. `floor` is one decode of each image, one forward of it for
each backbone and all steps of the heads, measured inside the script without what it takes to start. All three normalise
images as the weights' file says. The recipe's trials cost alike whatever their rate: with --recipe-probes and
--recipe-partials it runs so many rates of each backbone, and its cost is scaled up to all of them. Accuracies are then
compared for the trials that it ran.

The last line is one JSON object: probe_cpu_ratio, probe_wall_ratio, mixed_cpu_ratio, mixed_wall_ratio (recipe / tlray,
cold), script_cpu_ratio (tlray / script, cold), floor_ratio (tlray's cold probes / floor), worst_accuracy_delta and
mean_accuracy_delta (tlray minus recipe, points, over the trials that both ran), worst_script_delta (minus script).
"""

import argparse
import dataclasses
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
        self._factor: dict[str, float] = {}

    def run(
        self, label: str, program: str, *, probes: bool, partials: bool, storage: str = "", rates: int | None = None
    ) -> Any:
        """What the program printed last. `storage` tells runs apart that are to share activations, or not to.

        `rates`: how many of each backbone's rates to run; what that costs counts as often as it takes for all of them.
        """
        folder = self._folder / (storage or label.replace(" ", "-"))
        work = make_work(self._folder, self._shared, probes=probes, partials=partials, quick=self._quick)
        chosen = {name: _spread(getattr(work, name), rates) for name in ("probe_rates", "partial_rates")}
        self._factor[label] = max(len(getattr(work, name)) / max(1, len(few)) for name, few in chosen.items())
        path = self._folder / f"{label.replace(' ', '-')}.json"
        write_work(dataclasses.replace(work, storage=str(folder), **chosen), path)
        usage = run_measured([sys.executable, "-m", f"benchmarks.programs.{program}", str(path)])
        self.usage[label] = usage
        scaled = f"   x {self._factor[label]:g}" if self._factor[label] > 1 else ""
        print(f"{label:26} {usage.cpu_seconds:9.1f} {usage.wall_seconds:9.1f}{scaled}", flush=True)
        return json.loads(usage.last_line)

    def cpu(self, *labels: str) -> float:
        return sum(self.usage[label].cpu_seconds * self._factor[label] for label in labels)

    def wall(self, *labels: str) -> float:
        return sum(self.usage[label].wall_seconds * self._factor[label] for label in labels)


def _spread(rates: tuple[float, ...], count: int | None) -> tuple[float, ...]:
    """`count` of the rates, from the middle of as many equal parts."""
    if count is None or not rates:
        return rates
    return tuple(rates[(2 * part + 1) * len(rates) // (2 * count)] for part in range(count))


def keyed(rows: list[Row]) -> dict[tuple[str, str, float], float]:
    return {(row["backbone"], row["strategy"], row["lr"]): row["accuracy"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rates, 2 epochs: to try it out")
    parser.add_argument("--save", type=Path, help="keep everything that was measured in this file")
    parser.add_argument("--recipe-probes", type=int, metavar="N", help="run N of the recipe's 8 probe rates")
    parser.add_argument("--recipe-partials", type=int, metavar="N", help="run N of the recipe's 4 partial rates")
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
        recipe = do.run("recipe probe", "recipe", probes=True, partials=False, rates=options.recipe_probes)
        recipe += do.run("recipe partial", "recipe", probes=False, partials=True, rates=options.recipe_partials)
    ours, theirs, scripted = keyed(ours_mixed), keyed(recipe), keyed(script["rows"])
    print(f"script: floor {script['floor']:.1f} CPU s, its heads alone {script['training']:.1f} CPU s")
    print(f"\n{'trial':44} {'tlray %':>8} {'recipe %':>9} {'script %':>9}")
    for key in sorted(ours):
        by_rivals = [f"{100 * rows[key]:9.1f}" if key in rows else f"{'':9}" for rows in (theirs, scripted)]
        print(f"{f'{key[0]} {key[1]} lr={key[2]:g}':44} {100 * ours[key]:8.1f} {' '.join(by_rivals)}")
    deltas = [100 * (ours[key] - theirs[key]) for key in theirs]
    outcome = {
        "probe_cpu_ratio": do.cpu("recipe probe") / do.cpu("tlray probe cold"),
        "probe_wall_ratio": do.wall("recipe probe") / do.wall("tlray probe cold"),
        "script_cpu_ratio": do.cpu("tlray probe cold") / do.cpu("script probe"),
        "mixed_cpu_ratio": do.cpu("recipe probe", "recipe partial") / do.cpu("tlray mixed cold"),
        "mixed_wall_ratio": do.wall("recipe probe", "recipe partial") / do.wall("tlray mixed cold"),
        "floor_ratio": do.cpu("tlray probe cold") / script["floor"],
        "worst_accuracy_delta": min(deltas),
        "mean_accuracy_delta": statistics.mean(deltas),
        "worst_script_delta": min(100 * (ours[key] - scripted[key]) for key in scripted),
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
