"""timm's image models: what its registry and the `pretrained_cfg` of each set of weights say.

timm publishes neither accuracies nor sizes with its code; those come from the catalogue's data file.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

from tlray.catalogue.preprocessing import Preprocessing
from tlray.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "timm"
EXTRA: str | None = None
# Parts of a tag, between underscores, that name what the weights were trained on; timm writes them in that order.
DATA_SETS = (
    *("in1k", "in12k", "in21k", "in22k", "inw21k", "inat21", "jft", "ig1b", "yfcc15m", "yfcc100m", "lvd142m"),
    *("lvd1689m", "sat493m", "laion2b", "laion400m", "laiona", "datacomp1b", "datacompxl", "dfn2b", "dfn5b"),
    *("dfndr2b", "merged2b", "metaclip", "metaclip2", "openai", "webli", "cc12m", "sa1b", "bamboo", "m30m", "m38m"),
)


def names() -> tuple[str, ...]:
    import timm

    return tuple(sorted(timm.list_models()))


@functools.cache
def tags(name: str) -> tuple[str, ...]:
    default = config(name, None).get("tag")
    return tuple(sorted(_tags().get(name, ()), key=lambda tag: tag != default))


def config(name: str, tag: str | None) -> dict[str, Any]:
    """timm's `pretrained_cfg` as a dictionary, the default one without a tag; of weights that exist or not."""
    import timm

    found = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    return found.to_dict() if found is not None else {}


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    from timm.data import resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=config(name, tag))
    _, height, width = resolved["input_size"]
    if height != width:
        full_id = f"timm/{name}.{tag}" if tag else f"timm/{name}"
        raise BackboneError(
            f"{full_id} takes images of {height} x {width} pixels, and tlray prepares square ones; choose another"
        )
    return Preprocessing(
        input_size=(height, width),
        resize=math.floor(height / resolved["crop_pct"]),
        crop_mode=resolved["crop_mode"],
        interpolation=resolved["interpolation"],
        mean=_triple(resolved["mean"]),
        std=_triple(resolved["std"]),
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    import timm

    found = config(name, tag)
    _, height, width = found.get("input_size", (3, 224, 224))
    known: dict[str, Any] = {
        "family": timm.models.model_entrypoint(name).__module__.rpartition(".")[2],
        "input_size": height,
        "num_classes": found.get("num_classes"),
        "licence": found.get("license"),
        "trained_on": trained_on(tag or found.get("tag") or ""),
    }
    if not tags(name):
        note = "architecture only: timm has no weights of it"
        known |= {"licence": None, "trained_on": None, "num_classes": 1000, "note": note}
    if height != width:
        known |= {"usable": False, "note": f"takes images of {height} x {width} pixels, and tlray prepares square ones"}
    return known


def trained_on(tag: str) -> str | None:
    """Data sets that a tag names, in the order of training: "augreg_in21k_ft_in1k" -> "in21k+in1k"."""
    return "+".join(part for part in tag.split("_") if part in DATA_SETS) or None


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    import timm

    arguments: dict[str, Any] = {"num_classes": num_classes}
    if config(name, tag).get("fixed_input_size"):
        arguments["img_size"] = size
    full_name = f"{name}.{tag}" if tag else name
    return timm.create_model(full_name, pretrained=source == "pretrained", **(arguments | options))


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    found = config(name, tag)
    if found.get("label_descriptions"):
        return tuple(found["label_descriptions"].values())
    subset = infer_imagenet_subset(found)
    if subset is None:
        raise BackboneError(
            f"timm/{name}: no labels are known for its weights ({found.get('num_classes', 0)} classes); "
            "choose weights that were trained on ImageNet"
        )
    return tuple(ImageNetInfo(subset).label_descriptions())


@functools.cache
def _tags() -> dict[str, list[str]]:
    """Tags of the weights that exist, by architecture; timm searches its whole registry at each question."""
    import timm

    found: dict[str, list[str]] = {}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        found.setdefault(name, []).append(tag)
    return found


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
