"""Whether a run came to what the undisturbed one came to: leaderboard, exports, report, champion, predictions.

Not compared: what depends on the clock or on how often work was done. Numbers agree to TOLERANCE: probes that train as
a smaller group after a resume add in another order.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TOLERANCE = 1e-4
CLOCK = re.compile(r"seconds|bytes|images_seen|prefix_images|per_second|sha256|promoted$|fingerprint|^export$|^run$")


@dataclass(frozen=True)
class Differences:
    """One line each; a round's verdict counts a list that is not empty."""

    leaderboard: tuple[str, ...] = ()
    export: tuple[str, ...] = ()


def compare_sweeps(ours: Path, reference: Path, images: Path) -> Differences:
    """Two run folders, both done; `images`: a local copy of their images."""
    board = json_differences(_json(reference / "leaderboard.json"), _json(ours / "leaderboard.json"))
    if (mine := champion_in_report(ours)) != (theirs := champion_in_report(reference)):
        board.append(f"report.html: {theirs} became {mine}")
    if not (ours / "DONE").exists():
        board.append("no DONE")
    return Differences(tuple(board), tuple(export_differences(ours, reference, images)))


def compare_champions(ours: Path, reference: Path, images: Path) -> Differences:
    """Two folders of a retraining, `<storage>/<name>`, each with its champion."""
    champions = [_json(folder / "champion.json") for folder in (reference, ours)]
    found = json_differences(*champions)
    history = sorted(path.name for path in (ours / "champions").glob("*.json"))
    if history != sorted(path.name for path in (reference / "champions").glob("*.json")):
        found.append(f"champions/ has {history}")
    runs = [_run_of(champion, folder) for champion, folder in zip(champions, (reference, ours), strict=True)]
    if runs[0] is None or runs[1] is None:
        return Differences((*found, "no champion"))
    sweeps = compare_sweeps(runs[1], runs[0], images)
    return Differences((*found, *sweeps.leaderboard), sweeps.export)


def compare_predictions(ours: Path, reference: Path, images: Path) -> Differences:
    """Two folders of `tlray predict --output`."""
    tables = [_predictions(folder) for folder in (reference, ours)]
    found = [] if tables[0].keys() == tables[1].keys() else ["other images"]
    found += [
        f"{uri}: {row} became {tables[1][uri]}"
        for uri, row in tables[0].items()
        if uri in tables[1] and json_differences(row, tables[1][uri])
    ]
    if not (ours / "summary.json").exists():
        found.append("no summary.json")
    return Differences(tuple(found))


def json_differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = [name for name in theirs | ours if not CLOCK.search(name)]
        return [
            line
            for name in names
            for line in json_differences(theirs.get(name), ours.get(name), f"{where}.{name}".lstrip("."))
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        return [line for index, (one, other) in pairs for line in json_differences(one, other, f"{where}[{index}]")]
    if isinstance(theirs, float) and isinstance(ours, float):
        same = math.isclose(theirs, ours, rel_tol=TOLERANCE, abs_tol=1e-7)
    elif where.endswith("checkpoint"):
        same = str(theirs).rpartition("trials/")[2] == str(ours).rpartition("trials/")[2]
    else:
        same = theirs == ours
    return [] if same else [f"{where}: {theirs} became {ours}"]


def export_differences(ours: Path, reference: Path, images: Path) -> list[str]:
    """Every bundle is whole, is that of the leaderboard's trial, and is as accurate as that trial was found to be."""
    bundles = sorted(path.parent.name for path in (reference / "exports").glob("*/SHA256SUMS"))
    mine = sorted(path.parent.name for path in (ours / "exports").glob("*/SHA256SUMS"))
    if bundles != mine:
        return [f"exports are {mine}, not {bundles}"]
    found = [line for name in mine for line in _damage(ours / "exports" / name)]
    if found:
        return found
    for name in mine:
        theirs, metrics = (_json(folder / "exports" / name / "metrics.json") for folder in (reference, ours))
        if metrics.get("trial_id") != theirs.get("trial_id"):
            found.append(f"{name} is trial {metrics.get('trial_id')}, not {theirs.get('trial_id')}")
        accuracy = accuracy_of(ours / "exports" / name, reference, images)
        if not math.isclose(accuracy, theirs["test_accuracy"], abs_tol=1e-9):
            found.append(f"{name} classifies {accuracy:.4f} of the test images, not {theirs['test_accuracy']:.4f}")
    return found


def accuracy_of(bundle: Path, reference: Path, images: Path) -> float:
    """Of a bundle on the reference's test images, measured here: in another process than the run's, without Ray."""
    import tlray

    chosen = _test_images(reference)
    predictions = tlray.load(str(bundle))([str(images / name) for name in chosen])
    return sum(one.label == name.parent.name for one, name in zip(predictions, chosen, strict=True)) / len(chosen)


def champion_in_report(run: Path) -> str | None:
    """The text of the champion's row, without its times."""
    path = run / "report.html"
    row = re.search(r'<tr class="champion.*?</tr>', path.read_text(), re.S) if path.exists() else None
    if row is None:
        return None
    cells = re.findall(r"<td.*?</td>", row.group(), re.S)
    plain = [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in cells]
    return " | ".join(cell for cell in plain if not re.fullmatch(r"[\d.]+ (ms|s|min|h)", cell))


@lru_cache(maxsize=4)
def _test_images(reference: Path) -> tuple[Path, ...]:
    """By class and name."""
    table = pq.read_table(reference / "manifest.parquet").to_pylist()
    return tuple(Path(*row["uri"].split("/")[-2:]) for row in table if row["split"] == "test")


def _damage(bundle: Path) -> list[str]:
    """Files of a bundle that are not what its SHA256SUMS says."""
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    sums: Sequence[tuple[str, str]] = [(line[66:].strip(), line[:64]) for line in lines if len(line) > 66]
    return [
        f"{bundle.name}/{name} does not match SHA256SUMS"
        for name, checksum in sums
        if not (bundle / name).exists() or hashlib.sha256((bundle / name).read_bytes()).hexdigest() != checksum
    ]


def _predictions(output: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in (output / "predictions").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["uri"]: row for row in rows}


def _run_of(champion: dict[str, Any], home: Path) -> Path | None:
    return home / str(champion["run"]).rpartition("/")[2] if champion.get("run") else None


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else {}
