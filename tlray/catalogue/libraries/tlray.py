"""Architectures that tlray builds itself, because no library does: DenseNet-264, Keras' ResNetV2, YOLOv7's backbone.

No weights for torch are published for them; they start from a local checkpoint, or untrained. Convert the weights of
Keras Applications: `python -m tlray.catalogue.libraries.architectures.keras_weights IN.h5 OUT.safetensors`.
"""

from typing import TYPE_CHECKING, Any

from tlray.catalogue.libraries import imagenet
from tlray.catalogue.preprocessing import Preprocessing
from tlray.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "tlray"
EXTRA: str | None = None

KERAS_NOTE = (
    "weights are published for Keras only (.h5); convert them with "
    "`python -m tlray.catalogue.libraries.architectures.keras_weights IN.h5 OUT.safetensors` (extra keras) "
    "and give the file"
)
KERAS = {
    "family": "resnetv2",
    "feature_width": 2048,
    "top_source": "keras.io/api/applications, of Keras' own weights",
    "trained_on": "ImageNet-1k",
    "note": KERAS_NOTE,
}
# What no library says. Parameters with a head of 1000 classes; multiply-adds of one image of 224 pixels.
FACTS: dict[str, dict[str, Any]] = {
    "densenet264": {
        "family": "densenet",
        "num_params": 33_337_704,
        "gflops": 5.75,
        "feature_width": 2688,
        "note": "no weights were published for torch; PaddleClas has some (77.96 / 93.85 by its tables), not converted",
    },
    "resnet50v2": KERAS | {"num_params": 25_568_360, "gflops": 3.48, "top1": 76.0, "top5": 93.0, "size_mb": 98},
    "resnet101v2": KERAS | {"num_params": 44_577_896, "gflops": 7.19, "top1": 77.2, "top5": 93.8, "size_mb": 171},
    "resnet152v2": KERAS | {"num_params": 60_236_904, "gflops": 10.91, "top1": 78.0, "top5": 94.2, "size_mb": 232},
    "yolov7_backbone": {
        "family": "yolov7",
        "num_params": 14_396_808,
        "gflops": 4.05,
        "feature_width": 1024,
        "note": "YOLOv7 was published as a detector only (COCO), its backbone never with an ImageNet classifier",
    },
}
INPUT_SIZE = 224


def names() -> tuple[str, ...]:
    return tuple(sorted(FACTS))


def tags(name: str) -> tuple[str, ...]:
    """None of them can be downloaded."""
    return ()


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    """What the published weights of another framework were evaluated with."""
    mean, std = imagenet.MEAN, imagenet.STD
    if name in ("resnet50v2", "resnet101v2", "resnet152v2"):
        mean = std = (0.5, 0.5, 0.5)  # keras.applications' mode "tf": pixels in -1..1
    elif name == "yolov7_backbone":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # YOLO's pixels in 0..1
    return Preprocessing(
        input_size=(INPUT_SIZE, INPUT_SIZE),
        resize=256,
        crop_mode="center",
        interpolation="bilinear",
        mean=mean,
        std=std,
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    """Of the architecture; `top1` and `top5` are those of the weights that `note` speaks of."""
    return {
        "id": f"{LIBRARY}/{name}",
        "library": LIBRARY,
        "name": name,
        "tag": None,
        "weights": (),
        "input_size": INPUT_SIZE,
        "licence": "apache-2.0",  # of the code; the weights that a user brings have their own
        "licence_binds": False,
        "extra": EXTRA,
        **FACTS[name],
    }


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    """The architecture with random weights and `num_classes` outputs; every size of 32 pixels and more will do."""
    if source == "pretrained":
        raise BackboneError(
            f"{LIBRARY}/{name} has no published weights that can be downloaded; give weights: a path or URI, or none"
        )
    if name == "densenet264":
        from torchvision.models import DenseNet

        settings = {"growth_rate": 32, "block_config": (6, 12, 64, 48), "num_init_features": 64}
        return DenseNet(**(settings | {"num_classes": num_classes} | options))
    if options:
        raise BackboneError(f"{LIBRARY}/{name} takes no options, not {options}; leave options out")
    if name == "yolov7_backbone":
        from tlray.catalogue.libraries.architectures.headed import HeadedLayers
        from tlray.catalogue.libraries.architectures.yolov7 import WIDTH, yolov7_layers

        return HeadedLayers(yolov7_layers(), None, WIDTH, num_classes)
    from tlray.catalogue.libraries.architectures.keras_resnet import DEPTHS, KerasResNetV2

    return KerasResNetV2(DEPTHS[name], num_classes)


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    """Of a converted file that kept its classifier; nothing was ever trained to classify with YOLOv7's backbone."""
    if name == "yolov7_backbone":
        raise BackboneError(f"{LIBRARY}/{name}: no labels are known, YOLOv7 was published as a detector; train a head")
    return imagenet.labels()
