"""tlray's cells: a sweep as a user starts it, at the defaults of everything but images, backbones and places.

    for cell in sweep_cells(folder, images, shared, seed): ...

The single model is the leaderboard's champion. The run folder stays in FOLDER/runs, without what can be computed again.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.process_tree import run_measured
from benchmarks.quality_parts.cells import Cell, Key
from benchmarks.quality_parts.compare import ENSEMBLE, OURS
from benchmarks.quality_parts.sets import listing
from benchmarks.quality_parts.weights import backbone_entries


def config(images: Path, shared: Path, place: Path, seed: int) -> dict[str, Any]:
    return {
        "name": "run",
        "storage": str(place),
        "seed": seed,
        "data": {**{split: str(images / split) for split in ("train", "val", "test")}, "cache": str(place / "cache")},
        "backbones": backbone_entries(str(shared)),
        "strategies": "auto",
    }


def sweep_cells(place: Path, images: Path, shared: Path, key: Callable[[str], Key]) -> list[Cell]:
    """The run's cells: the champion's and the ensemble's. `key`: a rival's name -> its key."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(config(images, shared, place, key(OURS).seed)))
    usage = run_measured([sys.executable, "-m", "tlray.cli", "run", str(path)])
    (done,) = (place / "run").glob("*/DONE")
    for name in ("cache", "activations", "images"):
        shutil.rmtree(place / name, ignore_errors=True)
    champion = champion_cell(str(done.parent), images, key(OURS))
    cells = [champion, ensemble_cell(str(done.parent), images, key(ENSEMBLE), champion)]
    more = {"cpu_seconds": usage.cpu_seconds, "wall_seconds": usage.wall_seconds, "commit": commit()}
    return [replace(cell, **more) for cell in cells]


def champion_cell(run: str, images: Path, key: Key) -> Cell:
    """The leaderboard's champion with its answers, and all rows as candidates."""
    from tlray.runs.board import load_leaderboard

    leaderboard = load_leaderboard(run)
    champion = leaderboard.champion
    assert champion is not None, "no trial was scored"
    candidates = [
        {
            "backbone": row.backbone,
            "strategy": row.strategy,
            "lr": row.params.get("lr"),  # a solved probe has none
            "status": row.status,
            "epochs": row.epochs,
            "best_epoch": row.best_epoch,
            "score": row.val_accuracy,
            "test": row.test_accuracy,
        }
        for row in leaderboard.rows
    ]
    cell = Cell(
        key=key,
        chosen=f"{champion.backbone} {champion.strategy} {_searched(champion.params)}",
        predictions=in_order(run, predictions(run, champion.trial_id), images),
        labels=tuple(listing(images, "test")[1]),
        candidates=tuple(candidates),
    )
    _check(cell, champion.test_accuracy)
    return cell


def _searched(params: dict[str, Any]) -> str:
    """The rate of what was trained, the regularisation of a probe that was solved."""
    name = "lr" if "lr" in params else "C"
    return f"{name}={params[name]:g}"


def ensemble_cell(run: str, images: Path, key: Key, champion: Cell) -> Cell:
    """The leaderboard's ensemble; the champion alone where the run has none, which is then what it offers."""
    from tlray.runs.board import load_leaderboard
    from tlray.runs.calibration import tempered
    from tlray.runs.predictions import load_probabilities
    from tlray.runs.selection import mean_log_probabilities
    from tlray.runs.trials import load_recorded

    leaderboard = load_leaderboard(run)
    ensemble = leaderboard.ensemble
    if ensemble is None:
        return replace(champion, key=key, chosen=f"the champion alone: {leaderboard.no_ensemble_reason}")
    recorded = load_recorded(run)
    parts = [load_probabilities(run, recorded[member.trial_id], "test") for member in ensemble.members]
    calibrated = [tempered(part.logs, one.temperature) for part, one in zip(parts, ensemble.members, strict=True)]
    logs = mean_log_probabilities(calibrated, [member.weight for member in ensemble.members])
    cell = Cell(
        key=key,
        chosen=", ".join(f"{member.weight:.2f} {member.backbone} {member.strategy}" for member in ensemble.members),
        predictions=in_order(run, logs.argmax(axis=1).tolist(), images),
        labels=champion.labels,
        candidates=champion.candidates,
    )
    _check(cell, ensemble.test_accuracy)
    return cell


def _check(cell: Cell, accuracy: float | None) -> None:
    """What is made of single answers is what the run says."""
    assert accuracy is not None
    assert abs(cell.accuracy - 100 * accuracy) < 1e-6, f"{cell.key.name}: {cell.accuracy} is not {100 * accuracy}"


def predictions(run: str, trial_id: str) -> list[int]:
    """Class of each image of the run's test split; classes are numbered by name, as in sets.listing."""
    from tlray.runs.predictions import read_predictions
    from tlray.runs.trials import read_recorded

    recorded = read_recorded(run, trial_id)
    assert recorded is not None
    answers: list[int] = read_predictions(run, recorded, "test", ["predicted"])["predicted"].to_pylist()
    return answers


def in_order(run: str, answers: list[int], images: Path) -> tuple[int, ...]:
    """Answers about the run's test split, in the order of sets.listing."""
    from tlray.runs.manifest import load_manifest

    by_uri = {image.uri: answer for image, answer in zip(load_manifest(run).split("test"), answers, strict=True)}
    return tuple(by_uri[str(file)] for file in listing(images, "test")[0])


def code() -> str:
    """The tree of tlray's code as it stands in the last commit: cells of another tree run again."""
    return _git("rev-parse", "--short=12", "HEAD:tlray")


def commit() -> str:
    return _git("rev-parse", "--short=12", "HEAD")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()
