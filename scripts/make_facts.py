"""tlray/catalogue/facts.json: what no library has, each part with its source.

    git clone https://github.com/huggingface/pytorch-image-models
    python -m scripts.measure_architectures measured.jsonl                  # half an hour; goes on where it stopped
    python -m scripts.make_facts pytorch-image-models measured.jsonl

The first argument is a clone (or its git directory) of timm's repository: accuracies are read from the commit that it
has checked out. What the second file lacks is not lost: it is taken over from the facts.json that is there.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tlray.catalogue.data import FACTS, file_contents
from tlray.catalogue.libraries import LIBRARIES, installed, library, version
from tlray.catalogue.listing import all_models

REPOSITORY = "https://github.com/huggingface/pytorch-image-models"
ACCURACY = "results/results-imagenet.csv"
COMPUTED = (
    "scripts/measure_architectures.py on the meta device: parameters without and per class of the classifier, its "
    "width, blocks as tlray freezes them, multiply-adds (half of torch.utils.flop_counter) of one image"
)


def main(arguments: list[str]) -> None:
    clone, measured = arguments
    before = json.loads(FACTS.read_text()) if FACTS.exists() else {"architectures": {}, "optional": {}}
    architectures = before["architectures"] | _architectures(Path(measured))
    commit = _git(clone, "rev-parse", "HEAD").strip()
    contents = {
        "sources": {
            "accuracy": {"repository": REPOSITORY, "commit": commit, "file": ACCURACY},
            "architectures": {"computed": COMPUTED, "versions": _versions()},
            "optional": {"computed": "the metadata of the libraries that need an extra", "versions": _versions()},
        },
        "accuracy": _accuracy(_git(clone, "show", f"HEAD:{ACCURACY}")),
        "architectures": dict(sorted(architectures.items())),
        "optional": before["optional"],
    }
    FACTS.write_text(_one_line_an_entry(contents))
    file_contents.cache_clear()  # what follows is put together from the new file
    contents["optional"] = dict(sorted((before["optional"] | _optional()).items()))
    FACTS.write_text(_one_line_an_entry(contents))


def _architectures(measured: Path) -> dict[str, Any]:
    found = {}
    for line in measured.read_text().splitlines():
        entry = json.loads(line)
        full_id = entry.pop("id")
        error = entry.pop("error", None)
        if error is None and not entry["gmacs"]:
            error = entry.get("no_gmacs")
        found[full_id] = {key: value for key, value in entry.items() if key not in ("no_gmacs", "no_blocks")}
        if error is not None:
            found[full_id]["problem"] = error
    return found


def _accuracy(text: str) -> dict[str, dict[str, list[float]]]:
    """Top-1 and top-5 in percent of each set of weights, by image size."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        top = [float(row["top1"]), float(row["top5"])]
        found.setdefault(f"timm/{row['model']}", {})[row["img_size"]] = top
    return dict(sorted(found.items()))


def _optional() -> dict[str, Any]:
    """Everything that the listing shows of installed libraries which others may lack."""
    wanted = {home for home in installed() if library(home).EXTRA is not None}
    if not wanted:
        return {}
    return {facts.id: facts.to_dict() for facts in all_models() if facts.library in wanted}


def _versions() -> dict[str, str | None]:
    import torch

    return {"torch": torch.__version__.partition("+")[0]} | {home: version(home) for home in LIBRARIES}


def _git(clone: str, *arguments: str) -> str:
    folder = Path(clone)
    git_dir = folder / ".git" if (folder / ".git").exists() else folder
    command = ["git", f"--git-dir={git_dir}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _one_line_an_entry(contents: dict[str, Any]) -> str:
    """JSON that a diff can be read of."""
    parts = []
    for section, entries in contents.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        parts.append(f"{json.dumps(section)}: {{\n{lines}\n}}" if entries else f"{json.dumps(section)}: {{}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
