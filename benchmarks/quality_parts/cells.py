"""A cell: what one rival made of one set with one seed, as a JSON file. A cell that is there is not run again.

    cells = Cells(folder)
    if cells.read(key) is None: cells.write(Cell(...))

A file belongs to versions: those of the rival and of the set, and for tlray the tree of its code. A cell of other
versions counts as missing where it is to be run; it moves to `earlier/` when a new one comes.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Key:
    rival: str
    set: str
    seed: int
    version: str  # RIVAL.SET, of tlray CODE.SET

    @property
    def name(self) -> str:
        return f"{self.set}-{self.seed}-{self.rival}.json"


@dataclass(frozen=True)
class Cell:
    """Without predictions where a rival does not run here: `missing` then has the reason."""

    key: Key
    chosen: str = ""
    predictions: tuple[int, ...] = ()  # class of each test image, in the order of sets.listing
    labels: tuple[int, ...] = ()  # the true ones
    cpu_seconds: float = 0.0  # of the whole process tree
    wall_seconds: float = 0.0
    candidates: tuple[dict[str, Any], ...] = ()  # what was chosen from, each with the score that decided
    commit: str = ""  # of tlray's code
    missing: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> np.ndarray:
        """bool (N,) over the test images."""
        return np.array(self.predictions) == np.array(self.labels)

    @property
    def accuracy(self) -> float:
        """Points."""
        return 100 * float(self.correct.mean())

    @property
    def macro_f1(self) -> float:
        """Points."""
        return 100 * macro_f1(np.array(self.labels), np.array(self.predictions))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 over the classes that occur among `labels` or `predictions`, both int (N,); a fraction."""
    classes = np.union1d(labels, predictions)
    hits = np.array([np.sum((labels == one) & (predictions == one)) for one in classes])
    total = np.array([np.sum(labels == one) + np.sum(predictions == one) for one in classes])
    return float(np.mean(2 * hits / total))


class Cells:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cells"

    def read(self, key: Key) -> Cell | None:
        """None where there is none of these versions."""
        cell = self._load(self._folder / key.name)
        return cell if cell is not None and cell.key == key else None

    def write(self, cell: Cell) -> None:
        path = self._folder / cell.key.name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self._load(path)
        if before is not None and before.key != cell.key:
            aside = self._folder / "earlier" / f"{path.stem}-{before.key.version}.json"
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        scores = {} if cell.missing else {"accuracy": round(cell.accuracy, 3), "macro_f1": round(cell.macro_f1, 3)}
        building = path.with_suffix(".building")
        building.write_text(json.dumps({**scores, **asdict(cell)}))
        building.rename(path)

    def all(self) -> list[Cell]:
        """Of any version, sorted by name."""
        return [cell for path in sorted(self._folder.glob("*.json")) if (cell := self._load(path)) is not None]

    def _load(self, path: Path) -> Cell | None:
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        lists = {name: tuple(fields[name]) for name in ("predictions", "labels", "candidates")}
        others = {name: fields[name] for name in ("chosen", "cpu_seconds", "wall_seconds", "commit", "missing", "more")}
        return Cell(key=Key(**fields["key"]), **lists, **others)
