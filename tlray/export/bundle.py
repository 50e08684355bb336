"""Write an export bundle: the model in three formats that agree, what it is, how good it is, and checksums.

uri = export_bundle(model=model, backbone=..., classes=..., destination="s3://bucket/run/exports/1-resnet50", ...)

Everything is made and checked in a local folder first; of_run.py says how it takes the place of another bundle.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tlray import __version__, storage
from tlray.catalogue import Preprocessing, resolve_id, split_id
from tlray.config import BackboneConfig
from tlray.data.transforms import normalise
from tlray.export.card import write_card
from tlray.export.files import FORMAT_VERSION, BundleConfig
from tlray.export.formats import (
    ABSOLUTE_TOLERANCE,
    BATCH,
    INPUT,
    OUTPUT,
    RELATIVE_TOLERANCE,
    check_formats,
    write_formats,
)
from tlray.export.of_run import publish
from tlray.models.backbone import build_backbone
from tlray.process.scratch import temporary_folder
from tlray.runs.bundle_sums import CONFIG, METRICS, WEIGHTS, checksum_lines

LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxscript")


def export_bundle(
    *,
    model: nn.Module,
    backbone: BackboneConfig,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    strategy: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data_summary: Mapping[str, Mapping[str, int]],
    samples: torch.Tensor,
    destination: str,
    checkpoint_sha256: str | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Publish `model` (on the CPU, in evaluation mode) at `destination`, local or s3:// -> its absolute location.

    `backbone` is what the model was built from, `metrics` its leaderboard row, `data_summary` images by split and
    class, `checkpoint_sha256` of the file that holds its weights in the run, `warnings` the manifest's. The formats are
    traced with and compared on `samples` (B, 3, H, W) uint8, images after `eval_transform`.
    TlrayError: the architecture cannot be exported, or a format does not compute what the model computes; nothing is
    published then.
    """
    assert not model.training, "the model is in training mode"
    destination = storage.absolute(destination)
    config = _bundle_config(model, backbone, classes, preprocessing, strategy, params).model_copy(
        update={"trial_id": metrics.get("trial_id"), "checkpoint_sha256": checkpoint_sha256}
    )
    images = normalise(samples, preprocessing)
    with temporary_folder("export") as folder:
        write_formats(model, images, folder, backbone.id)
        _write_weights(model, config, folder)
        agreement = check_formats(model, images, folder, _rebuilt(config, folder))
        _write_json(folder / CONFIG, config.model_dump(mode="json"))
        _write_json(folder / METRICS, {**metrics, "agreement": agreement.model_dump(mode="json")})
        write_card(folder, config, metrics, data_summary, agreement, warnings)
        publish(folder, checksum_lines(folder), destination)
    return destination


def _bundle_config(
    model: nn.Module,
    backbone: BackboneConfig,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    strategy: str,
    params: Mapping[str, Any],
) -> BundleConfig:
    options = dict(backbone.options)
    if hasattr(model, "transform_input"):  # of torchvision's GoogLeNet and Inception V3: depends on their weights
        options["transform_input"] = model.transform_input
    height, width = preprocessing.input_size
    return BundleConfig(
        format_version=FORMAT_VERSION,
        tlray_version=__version__,
        libraries={name: version(name) for name in LIBRARIES},
        backbone=BackboneConfig(id=resolve_id(backbone.id), weights="none", input_size=height, options=options),
        initial_weights=backbone.weights,
        strategy=strategy,
        params=dict(params),
        classes=tuple(classes),
        preprocessing=preprocessing.to_dict(),
        input={"name": INPUT, "dtype": "float32", "shape": [BATCH, 3, height, width]},
        output={"name": OUTPUT, "dtype": "float32", "shape": [BATCH, len(classes)]},
        tolerance={"absolute": ABSOLUTE_TOLERANCE, "relative_to_largest_logit": RELATIVE_TOLERANCE},
    )


def _write_weights(model: nn.Module, config: BundleConfig, folder: Path) -> None:
    """The whole state dict; the metadata lets the file serve as `weights:` of another run."""
    preprocessing = config.image_preprocessing
    backbone = split_id(config.backbone.id)
    metadata = {
        "backbone": config.backbone.id,
        "library": backbone.library,
        "arch": backbone.name,
        "input_size": str(preprocessing.input_size[0]),
        "resize": str(preprocessing.resize),
        "interpolation": preprocessing.interpolation,
        "mean": ",".join(str(value) for value in preprocessing.mean),
        "std": ",".join(str(value) for value in preprocessing.std),
    }
    # clone: a state dict may hold the same tensor under two names, which the format refuses
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata)


def _rebuilt(config: BundleConfig, folder: Path) -> nn.Module:
    """The model as `tlray.load` will rebuild it."""
    rebuilt = build_backbone(config.backbone, len(config.classes)).model.eval()
    rebuilt.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return rebuilt


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
