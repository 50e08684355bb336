"""Is what tlray chooses at its defaults as good as anybody's best recipe? The same images and backbones for everyone.

    python -m benchmarks.quality --folder FOLDER [--rivals logistic,timm] [--sets dogcat] [--seeds 0]
    python -m benchmarks.quality --folder FOLDER --rivals none [--write docs/results/quality.md]     # what is there

Five sets (quality_parts/sets.py: ants and bees, dogs and cats, CIFAR-10, a long-tailed and a few-shot task), three
seeds, each with a split of its own, four backbones with ImageNet weights at 112 pixels. Nobody chooses by the test
split. tlray runs `strategies: auto` at its defaults. Against it: scikit-learn's LogisticRegressionCV on standardised
features, best of the backbones by cross-validation (and the mean of its probabilities over them, against the ensemble);
on the two backbones that it likes best, fastai's `fine_tune(10)` with and without TTA, a timm-style recipe, and
AutoGluon MultiModal. The extra `bench` has fastai; `--peers` names the Python that has it. AutoGluon asks for an older
torch than tlray's: `--autogluon` names the Python of an environment with `pip install autogluon.multimodal`.

FOLDER keeps every cell (rival, set, seed) as a file with its test predictions, and what is there is not run again: run
it in parts of any length. A cell of tlray's belongs to the tree of its code in the last commit and runs again after a
change of it. CPU seconds are those of the whole process tree, on one thread for each process of a rival.

The last line is one JSON object: below_best_beyond_interval (sets on which tlray's model is below a rival by more than
the 95 % interval of the paired bootstrap; sets_below names them), mean_gain_over_best_points (mean over sets, over
the best rival of each by test accuracy), ensemble_gain_over_mean_points, cost_over_dearest (CPU seconds, over those of
the rival that takes most).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, shared_folder
from benchmarks.process_tree import run_measured
from benchmarks.quality_parts.cells import Cell, Cells, Key
from benchmarks.quality_parts.compare import OURS, summary
from benchmarks.quality_parts.rivals import AUTOGLUON, LOGISTIC, OWN, PEERS, PROGRAMS, Program
from benchmarks.quality_parts.sets import SETS, describe_set, listing, make_set
from benchmarks.quality_parts.sweep import code, sweep_cells
from benchmarks.quality_parts.table import replace_table, table
from benchmarks.quality_parts.weights import BACKBONES

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
CACHE = "~/.cache/tlray-benchmarks/quality"


@dataclass(frozen=True)
class Place:
    """One set with one seed."""

    name: str
    seed: int
    images: Path

    def key(self, rival: str, version: str | int) -> Key:
        return Key(rival, self.name, self.seed, f"{version}.{SETS[self.name].version}")


class Runs:
    """Runs what is missing and writes its cells."""

    def __init__(self, folder: Path, pythons: dict[str, str]) -> None:
        self._folder, self._pythons, self._shared = folder, pythons, shared_folder()
        self._reasons: dict[str, str] = {}
        self.cells = Cells(folder)

    def place(self, name: str, seed: int) -> Place:
        return Place(name, seed, make_set(self._folder / "sets", SETS[name], self._shared, seed))

    def program(self, program: Program, place: Place) -> None:
        """Fill the cells of a rival's program, unless all are there."""
        keys = [place.key(rival, program.version) for rival in program.rivals]
        if all((cell := self.cells.read(key)) is not None and not cell.missing for key in keys):
            return
        if reason := self._reason(program):
            self._keep_missing(keys, reason)
            return
        job = self._folder / "jobs" / f"{place.name}-{place.seed}-{program.module}.json"
        job.parent.mkdir(parents=True, exist_ok=True)
        job.write_text(
            json.dumps(
                {
                    "images": str(place.images),
                    "weights": str(self._shared / "weights"),
                    "backbones": self._backbones(program, place),
                    "seed": place.seed,
                }
            )
        )
        command = [self._pythons[program.python], "-m", f"benchmarks.programs.{program.module}", str(job)]
        try:
            usage = run_measured(command, ONE_THREAD)
        except RuntimeError as error:
            self._keep_missing(keys, str(error).strip().splitlines()[-1])
            return
        answers = json.loads(usage.last_line)
        labels = tuple(listing(place.images, "test")[1])
        for key in keys:
            self._keep(made_cell(key, answers[key.rival], labels, usage.cpu_seconds, usage.wall_seconds))

    def sweep(self, place: Place) -> None:
        """Fill tlray's cells, unless they are there for the code as it is."""
        if self.cells.read(place.key(OURS, code())) is None:
            where = self._folder / "runs" / f"{place.name}-{place.seed}"
            for cell in sweep_cells(where, place.images, self._shared, lambda rival: place.key(rival, code())):
                self._keep(cell)

    def _backbones(self, program: Program, place: Place) -> list[str]:
        """Those of this set and seed that logistic regression likes best, the best first; all of them for itself."""
        if program.backbones == len(BACKBONES):
            return list(BACKBONES)
        self.program(LOGISTIC, place)
        cell = self.cells.read(place.key(LOGISTIC.rivals[0], LOGISTIC.version))
        if cell is None or cell.missing:
            sys.exit("logistic regression chooses the backbones of the others: it needs scikit-learn 1.9")
        ranked = sorted(cell.candidates, key=lambda candidate: -candidate["score"])
        return [candidate["backbone"] for candidate in ranked][: program.backbones]

    def _reason(self, program: Program) -> str:
        """Why the program cannot run here; empty where it can."""
        if program.module not in self._reasons:
            python = self._pythons[program.python]
            tried = subprocess.run([python, "-c", program.needs], capture_output=True, text=True)
            lines = tried.stderr.strip().splitlines()
            self._reasons[program.module] = lines[-1] if tried.returncode and lines else ""
        return self._reasons[program.module]

    def _keep_missing(self, keys: list[Key], reason: str) -> None:
        for key in keys:
            self._keep(Cell(key=key, missing=reason))

    def _keep(self, cell: Cell) -> None:
        self.cells.write(cell)
        told = cell.missing or (
            f"{cell.accuracy:5.1f} {cell.macro_f1:5.1f} {cell.cpu_seconds:7.0f} {cell.wall_seconds:7.0f}  {cell.chosen}"
        )
        print(f"{cell.key.set:12} {cell.key.seed} {cell.key.rival:14} {told}", flush=True)


def made_cell(key: Key, answer: dict[str, Any], labels: tuple[int, ...], cpu: float, wall: float) -> Cell:
    return Cell(
        key=key,
        chosen=answer["chosen"],
        predictions=tuple(answer["predictions"]),
        labels=labels,
        cpu_seconds=round(cpu, 2),
        wall_seconds=round(wall, 2),
        candidates=tuple(answer["candidates"]),
    )


def run_all(runs: Runs, rivals: Sequence[str], places: Sequence[Place]) -> None:
    """Rival by rival, the cheapest first, tlray last."""
    for program in PROGRAMS:
        if not set(rivals).isdisjoint(program.rivals):
            for place in places:
                runs.program(program, place)
    if OURS in rivals:
        for place in places:
            runs.sweep(place)


def main() -> None:
    everyone = [rival for program in PROGRAMS for rival in program.rivals] + [OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(CACHE), help=f"where cells are kept, by default {CACHE}")
    parser.add_argument("--rivals", default=",".join(everyone), help="which to run; none: only show what is there")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--peers", default=sys.executable, help="Python that has the extra `bench`")
    parser.add_argument("--autogluon", default=sys.executable, help="Python that has autogluon.multimodal")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    options = parser.parse_args()
    rivals = [] if options.rivals == "none" else options.rivals.split(",")
    names, seeds = options.sets.split(","), [int(seed) for seed in options.seeds.split(",")]
    for given, known in ((rivals, everyone), (names, list(SETS))):
        for name in set(given) - set(known):
            parser.error(f"{name} is none of {', '.join(known)}")
    print(describe())
    runs = Runs(
        options.folder.expanduser().absolute(),
        {OWN: sys.executable, PEERS: options.peers, AUTOGLUON: options.autogluon},
    )
    print(f"{'set':12} s {'rival':14} {'acc %':>5} {'F1 %':>5} {'CPU s':>7} {'wall s':>7}  chosen")
    if rivals:
        places = [runs.place(name, seed) for seed in seeds for name in names]
        for place in places[: len(names)]:
            print(f"{place.name:12} {describe_set(place.images)} (train / val / test)")
        run_all(runs, rivals, places)
    cells = runs.cells.all()
    text = table(cells)
    print(f"\n{text}\n")
    if options.write is not None:
        replace_table(options.write, text)
    print(json.dumps(summary(cells)))


if __name__ == "__main__":
    main()
