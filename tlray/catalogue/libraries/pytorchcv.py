"""pytorchcv (MIT): 380 ImageNet classifiers, among them BN-Inception, NASNet-Mobile and pre-activation ResNets.

Names, checksums and preprocessing come from the package's table of weights, accuracies and multiply-adds from the
tables of its description. Both are read without importing torch. Where the package is not installed, `names` and
`facts` know the models of `ROWS` only, and `construct` says which extra installs it.
"""

import csv
import math
import re
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from tlray.catalogue.libraries import imagenet
from tlray.catalogue.libraries.optional import is_installed, load
from tlray.catalogue.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "pytorchcv"
EXTRA: str | None = "pytorchcv"
TAG = "in1k"  # one set of weights for each model
TOP_SOURCE = "pytorchcv 0.0.74, README (100 - error)"

# The models that neither torchvision nor timm has, for a machine without the package: as its tables have them, and the
# width of the features, which they do not state.
ROWS: dict[str, dict[str, Any]] = {
    "bninception": {"num_params": 11_295_240, "feature_width": 1024, "gflops": 2.048, "top1": 74.63, "top5": 92.26},
    "nasnet_4a1056": {"num_params": 5_289_978, "feature_width": 1056, "gflops": 0.585, "top1": 74.68, "top5": 91.97},
    "preresnet50": {"num_params": 25_549_480, "feature_width": 2048, "gflops": 3.875, "top1": 77.60, "top5": 93.53},
    "preresnet101": {"num_params": 44_541_608, "feature_width": 2048, "gflops": 7.595, "top1": 79.19, "top5": 94.37},
    "preresnet152": {"num_params": 60_185_256, "feature_width": 2048, "gflops": 11.319, "top1": 80.64, "top5": 95.36},
}
STANDARD = {"img_size": "224", "img_scale": "0.875", "remark": "NA"}  # of a row in the package's table
UNUSUAL_PREPROCESSING = "]*"  # how the table's remark ends
TABLE_LINE = re.compile(
    r"^\|[^|]+\|\s*(?P<error1>[\d.]+)\s*\|\s*(?P<error5>[\d.]+)\s*\|[^|]+\|\s*(?P<macs>[\d,.]+)M\s*\|"
    r".*/(?P<name>\w+)-\d+-(?P<sha>[0-9a-f]{8})\.pth",
    re.MULTILINE,
)
FAMILY = re.compile(r"(.+?)(?:(?:_[a-z]{0,2}|v|x|y|)\d.*)?$")
HAVE_THEIR_OWN_SIZE = ("nasnet_4a1056", "nasnet_6a4032")  # they pass in_size on themselves and refuse another


def names() -> tuple[str, ...]:
    return tuple(sorted(_table() if is_installed("pytorchcv") else ROWS))


def tags(name: str) -> tuple[str, ...]:
    """One set of weights, or none for the fifty models of which only the architecture is there."""
    return (TAG,) if not is_installed("pytorchcv") or "checksum" in _row(name) else ()


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    row = _row(name)
    size = int(row["img_size"])
    return Preprocessing(
        input_size=(size, size),
        resize=math.ceil(size / float(row["img_scale"])),
        crop_mode="center",
        interpolation="bilinear",
        mean=imagenet.MEAN,
        std=imagenet.STD,
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    family = FAMILY.match(name)
    assert family is not None
    figures, weights = _figures(name), tags(name)
    known = {
        "id": f"{LIBRARY}/{name}",
        "library": LIBRARY,
        "name": name,
        "tag": next(iter(weights), None),
        "weights": weights,
        "family": family.group(1),
        "input_size": int(_row(name)["img_size"]),
        "size_mb": round(figures["num_params"] * 4 / 2**20, 1),  # float32, unpacked
        "top_source": TOP_SOURCE if "top1" in figures else None,
        "licence": "mit",
        "licence_binds": False,
        "trained_on": "ImageNet-1k",
        "extra": EXTRA,
        **figures,
    }
    if _row(name)["remark"].endswith(UNUSUAL_PREPROCESSING):
        known["note"] = "its accuracy was measured with a preprocessing of its own, which pytorchcv does not state"
    if not weights:
        known["note"] = "weights were never published; start from a file or from none"
    return known


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    """The package's model with `num_classes` outputs; pretrained, its own head is kept where the number is the same."""
    provider = load("pytorchcv.model_provider", extra="pytorchcv")
    from tlray.catalogue.libraries.architectures.headed import replace_classifier

    arguments: dict[str, Any] = {} if name in HAVE_THEIR_OWN_SIZE else {"in_size": (size, size)}
    if source == "pretrained":
        arguments |= {"pretrained": True, "root": str(imagenet.download_folder())}
    else:
        arguments |= {"num_classes": num_classes}
    try:
        model = provider.get_model(name, **(arguments | options))
    except RuntimeError as error:
        if "Failed downloading" not in str(error):
            raise
        raise OSError(str(error)) from None  # as the other libraries say that a download failed
    if source == "pretrained" and num_classes != imagenet.NUM_CLASSES:
        replace_classifier(model, num_classes)
    _pool_maps_of_any_size(model)
    return model


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    return imagenet.labels()


def _pool_maps_of_any_size(model: Any) -> None:
    """The last pooling's window is that of the default input size; over all of it the mean is the same.

    The few models that pool in their classifier (DPN, SqueezeNet) take images of their own size only.
    """
    from torch import nn

    if isinstance(dict(model.named_modules()).get("features.final_pool"), nn.AvgPool2d):
        model.features.final_pool = nn.AdaptiveAvgPool2d(1)


def _row(name: str) -> dict[str, str]:
    """The package's row of the model's weights, with its usual values where it states none."""
    row = _table().get(name, {}) if is_installed("pytorchcv") else {}
    return STANDARD | {key: value for key, value in row.items() if value != "NA"}


def _figures(name: str) -> dict[str, Any]:
    if not is_installed("pytorchcv"):
        return dict(ROWS[name])
    row = _row(name)
    published = _accuracies().get((name, row.get("checksum", "")[:8]), {})
    return ROWS.get(name, {}) | {"num_params": int(row["net_weights"]), **published}


@cache
def _table() -> dict[str, dict[str, str]]:
    """The rows of the ImageNet classifiers in the package's table of weights, by name."""
    table = resources.files("pytorchcv") / "models" / "common" / "model_metainfos.csv"
    with table.open(encoding="utf-8") as file:
        return {row["model_name"]: row for row in csv.DictReader(file) if row["test_dataset"] == "in1k"}


@cache
def _accuracies() -> dict[tuple[str, str], dict[str, float]]:
    """top1 and top5 in percent and gflops, by name and the start of the checksum of the weights."""
    description = str(metadata.metadata("pytorchcv").json["description"])
    return {
        (match["name"], match["sha"]): {
            "top1": round(100 - float(match["error1"]), 2),
            "top5": round(100 - float(match["error5"]), 2),
            "gflops": round(float(match["macs"].replace(",", "")) / 1000, 3),
        }
        for match in TABLE_LINE.finditer(description)
    }
