"""ultralytics (AGPL-3.0, code and weights): YOLOv8's ImageNet classifiers and the backbones of YOLOv9's detectors.

Importing the package changes settings of the process (printing of numbers, environment variables, torch.save, and
Pillow's Image.open, which would then try to install packages for a file that it cannot read), which are put back, and
writes a settings file into the user's configuration folder; only building a model imports it.

Its weights are pickles of whole models. They are read with torch.load(weights_only=True) and the package's own list of
classes that may appear in them, so a file cannot run code of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.catalogue.libraries import imagenet
from tlray.catalogue.libraries.optional import load
from tlray.catalogue.preprocessing import Preprocessing
from tlray.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from torch import nn

LIBRARY = "ultralytics"
EXTRA: str | None = "ultralytics"
LICENCE = "agpl-3.0"
INPUT_SIZE = 224
CLASSIFIER_WIDTH = 1280  # of the convolution in front of YOLOv8's classifier
NUM_YOLOV9_LAYERS = 10  # of the backbone; the neck and the detection head come after them
IMAGENET, COCO = "imagenet", "coco"  # tags: what a file was trained on

CLASSIFIERS_SOURCE = "docs.ultralytics.com/tasks/classify, of YOLOv8"
DETECTOR_NOTE = "only detection weights exist (COCO), so the classifier in front of its backbone starts untrained"
# Parameters with a head of 1000 classes; multiply-adds of one image of 224 pixels; accuracies of CLASSIFIERS_SOURCE.
FACTS: dict[str, dict[str, Any]] = {
    "yolov8n-cls": {"num_params": 2_719_288, "gflops": 0.20, "top1": 66.6, "top5": 87.0},
    "yolov8s-cls": {"num_params": 6_361_736, "gflops": 0.76, "top1": 72.3, "top5": 91.1},
    "yolov8m-cls": {"num_params": 17_053_336, "gflops": 2.55, "top1": 76.4, "top5": 93.2},
    "yolov8l-cls": {"num_params": 37_480_744, "gflops": 6.05, "top1": 78.0, "top5": 94.1},
    "yolov8x-cls": {"num_params": 57_422_840, "gflops": 9.42, "top1": 78.4, "top5": 94.3},
    "yolov9t": {"num_params": 837_720, "gflops": 0.17, "feature_width": 128},
    "yolov9s": {"num_params": 3_077_576, "gflops": 0.66, "feature_width": 256},
    "yolov9m": {"num_params": 8_416_456, "gflops": 1.97, "feature_width": 480},
    "yolov9c": {"num_params": 9_498_280, "gflops": 2.60, "feature_width": 512},
}


def names() -> tuple[str, ...]:
    """Also without the package: the table above is all there is."""
    return tuple(sorted(FACTS))


def tags(name: str) -> tuple[str, ...]:
    return (IMAGENET,) if _is_classifier(name) else (COCO,)


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    """ultralytics' own for classification: the short side to 224, bilinear, pixels in 0..1."""
    return Preprocessing(
        input_size=(INPUT_SIZE, INPUT_SIZE),
        resize=INPUT_SIZE,
        crop_mode="center",
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    of_classifier = {
        "feature_width": CLASSIFIER_WIDTH,
        "top_source": CLASSIFIERS_SOURCE,
        "trained_on": "ImageNet-1k",
        "size_mb": round(FACTS[name]["num_params"] * 2 / 2**20, 1),  # the files hold half precision
        "note": "AGPL-3.0 binds what is built on it, a service in a network included",
    }
    of_detector = {"trained_on": "COCO (detection)", "note": DETECTOR_NOTE}
    return {
        "id": f"{LIBRARY}/{name}",
        "library": LIBRARY,
        "name": name,
        "tag": tags(name)[0],
        "weights": tags(name),
        "family": name[:6],
        "input_size": INPUT_SIZE,
        "licence": LICENCE,
        "licence_binds": True,
        "extra": EXTRA,
        **(of_classifier if _is_classifier(name) else of_detector),
        **FACTS[name],
    }


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    """The layers under `features`, `conv` (YOLOv8's last convolution), pooling and the head `fc`."""
    if options:
        raise BackboneError(f"{LIBRARY}/{name} takes no options, not {options}; leave options out")
    tasks = _module("ultralytics.nn.tasks")
    model = _untrained(tasks, name, imagenet.NUM_CLASSES if source == "pretrained" else num_classes)
    if source == "pretrained":
        from tlray.catalogue.libraries.architectures.headed import replace_classifier

        path = _downloaded(name)
        published = _read_model(path)
        head = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("fc.")}
        model.load_state_dict(head | _our_names(published.state_dict(), path))  # a detector's file has no head for us
        _copy_norm_settings(published, model)
        if num_classes != imagenet.NUM_CLASSES:
            replace_classifier(model, num_classes)
    return model


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    if not _is_classifier(name):
        raise BackboneError(f"{LIBRARY}/{name}: no labels are known, its weights are a detector's; train a head first")
    return imagenet.labels()


def read_checkpoint(path: str | Path) -> "dict[str, torch.Tensor]":
    """Tensors of a .pt file of ultralytics under the names of `construct`'s model, float32, without a detector's neck.

    BackboneError: the file holds anything but tensors and classes that ultralytics knows, or no layers of a YOLO.
    """
    return _our_names(_read_model(path).state_dict(), path)


def _read_model(path: str | Path) -> "nn.Module":
    """The model in a .pt file, float32; nothing that the file brings along is run."""
    tasks = _module("ultralytics.nn.tasks")
    if not tasks._SafeLoad.SUPPORTED:  # torch_safe_load would then fall back to unpickling whatever is there
        raise BackboneError(
            f"weights {str(path)!r}: refused, this torch cannot read them safely; install a newer torch"
        )
    try:
        content, _ = tasks.torch_safe_load(str(path), safe_only=True)
    except (TypeError, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"weights {str(path)!r}: refused, reading them would run code that they bring along ({reason}); "
            "where they were made, save the tensors only: safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from None
    module = content.get("ema") or content.get("model")
    if not hasattr(module, "state_dict"):
        raise BackboneError(f"weights {str(path)!r}: hold no model; give a .pt file as ultralytics publishes them")
    return module.float()


def _copy_norm_settings(published: "nn.Module", model: "nn.Module") -> None:
    """Epsilon and momentum are no tensors, and differ between ultralytics' classifiers and detectors."""
    from torch import nn

    known = next(module for module in published.modules() if isinstance(module, nn.BatchNorm2d))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = known.eps, known.momentum


def _untrained(tasks: Any, name: str, num_classes: int) -> "nn.Module":
    from torch import nn

    from tlray.catalogue.libraries.architectures.headed import HeadedLayers

    description = tasks.yaml_model_load(f"{name}.yaml") | {"head": []}
    layers, _ = tasks.parse_model(description, ch=3, verbose=False)
    features = nn.Sequential(*layers)
    if not _is_classifier(name):
        tasks.initialize_weights(features)  # epsilon and momentum of the batch norms, set for detectors only
        return HeadedLayers(features, None, FACTS[name]["feature_width"], num_classes)
    last: Any = features[-1]
    conv = tasks.Classify(last.cv2.conv.out_channels, num_classes).conv
    return HeadedLayers(features, conv, CLASSIFIER_WIDTH, num_classes)


def _our_names(state: "dict[str, torch.Tensor]", path: str | Path) -> "dict[str, torch.Tensor]":
    """model.0.conv.weight -> features.0.conv.weight; model.9.conv, model.9.linear of a classifier -> conv, fc."""
    last = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("model.")), default=-1)
    if not last:
        raise BackboneError(f"weights {str(path)!r}: hold no layers of a YOLO model")
    head = last - 1 if f"model.{last - 1}.linear.weight" in state else None
    num_backbone = head if head is not None else NUM_YOLOV9_LAYERS
    renamed = {}
    for key, tensor in state.items():
        _, number, rest = key.split(".", 2)
        if int(number) < num_backbone:
            renamed[f"features.{number}.{rest}"] = tensor
        elif int(number) == head:
            renamed[rest.replace("linear.", "fc.")] = tensor
    return renamed


def _is_classifier(name: str) -> bool:
    return name.endswith("-cls")


def _module(name: str) -> Any:
    """A module of the package, imported without what importing it does to the process around it."""
    with _process_left_as_it_was():
        return load(name, extra="ultralytics")


@contextmanager
def _process_left_as_it_was() -> Iterator[None]:
    """Worker processes inherit the environment, so a thread count left there would slow down all of them."""
    import numpy as np
    import torch
    from PIL import Image

    environment, save, printing, opened = dict(os.environ), torch.save, np.get_printoptions(), Image.open
    try:
        yield
    finally:
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
        torch.save = save
        Image.open = opened
        if np.get_printoptions() != printing:
            np.set_printoptions(**printing)
            torch.set_printoptions(profile="default")


def _downloaded(name: str) -> Path:
    """The published file in torch's folder of downloads, fetched where it is not there yet; OSError if it cannot be."""
    downloads = _module("ultralytics.utils.downloads")
    path = imagenet.download_folder() / f"{name}.pt"
    try:
        downloads.attempt_download_asset(str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from None
    if not path.exists():
        raise FileNotFoundError(f"{path.name} was not downloaded")
    return path
