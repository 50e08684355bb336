"""The facts that no library has, from facts.json beside this file; its `sources` say where each part is from.

    accuracy       "timm/NAME.TAG" -> {"224": [top-1, top-5]}: percent, at the image size that was evaluated
    architectures  "timm/NAME"     -> body, per_class (parameters without the classifier, and of it for each class),
                                      width (what it takes), blocks, gmacs {"224": 10^9 multiply-adds}, problem
    optional       facts of libraries that need a pip extra, for installations that lack it

and the catalogue's rows, models as people call them with the ids that mean them, from rows.json.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("facts.json")
ROWS = Path(__file__).with_name("rows.json")
MIB = 2**20
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class CatalogueRow:
    """A model as articles call it."""

    number: int
    name: str
    ids: tuple[str, ...]  # what means it, the best known first; of libraries that may not be installed too
    note: str = ""  # what is not as the name says: weights that nobody published, other layouts, licences


def rows() -> tuple[CatalogueRow, ...]:
    """Every row of the catalogue, by number."""
    return tuple(CatalogueRow(**{**row, "ids": tuple(row["ids"])}) for row in json.loads(ROWS.read_text()))


@functools.cache
def file_contents() -> dict[str, Any]:
    return json.loads(FACTS.read_text())


def computed(arch: str, input_size: int | None, num_classes: int | None) -> dict[str, Any]:
    """Fields of ModelFacts that follow from an architecture; empty where it is not in the file."""
    found = file_contents()["architectures"].get(arch, {})
    fields: dict[str, Any] = {
        "gflops": found.get("gmacs", {}).get(str(input_size)),
        "feature_width": found.get("width"),
        "num_blocks": found.get("blocks"),
        "usable": "problem" not in found,
    }
    if "problem" in found:
        fields["note"] = f"tlray cannot train it: {found['problem']}"
    if "body" in found and num_classes is not None:
        fields["num_params"] = found["body"] + found["per_class"] * num_classes
        fields |= {"size_mb": round(fields["num_params"] * FLOAT32 / MIB, 2), "size_estimated": True}
    return fields


def accuracy(full_id: str, input_size: int | None) -> dict[str, Any]:
    """top1, top5 and top_source of weights; at the nearest image size where theirs was not evaluated."""
    by_size = file_contents()["accuracy"].get(full_id)
    if by_size is None:
        return {}
    size = min(by_size, key=lambda one: (abs(int(one) - (input_size or 0)), int(one)))
    top1, top5 = by_size[size]
    return {"top1": top1, "top5": top5, "top_source": f"timm's results-imagenet.csv, {size} px"}
