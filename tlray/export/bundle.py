"""Write an export bundle: the model in three formats that agree, what it is, how good it is, and checksums.

uri = export_bundle(model=model, backbone=..., classes=..., destination="s3://bucket/run/exports/1-resnet50", ...)
uri = write_bundle(networks, ensemble_config(members, classes), samples, facts, destination)

Everything is made and checked in a local folder first; of_run.py says how it takes the place of another bundle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from tlray.export.assemble import assemble, rebuild, state_of
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
from tlray.process.scratch import temporary_folder
from tlray.runs.bundle_sums import CONFIG, METRICS, WEIGHTS, checksum_lines

LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxscript")


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle says of its model."""

    metrics: Mapping[str, Any]  # its leaderboard row, with the calibration where it has one
    data_summary: Mapping[str, Mapping[str, int]]  # images by split and class
    warnings: Sequence[str] = ()  # the manifest's


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
    temperature: float = 1.0,
    tta: str = "none",
) -> str:
    """Publish `model` (on the CPU, in evaluation mode) at `destination`, local or s3:// -> its absolute location.

    `backbone` is what the model was built from, `checkpoint_sha256` of the file that holds its weights in the run.
    `temperature` divides the logits, `tta: flip` averages over the mirror image; both are part of every format.
    """
    changed = {
        "trial_id": metrics.get("trial_id"),
        "checkpoint_sha256": checkpoint_sha256,
        "temperature": temperature,
        "tta": tta,
    }
    config = single_config(model, backbone, classes, preprocessing, strategy, params).model_copy(update=changed)
    return write_bundle([model], config, samples, BundleFacts(metrics, data_summary, warnings), destination)


def write_bundle(
    networks: Sequence[nn.Module], config: BundleConfig, samples: torch.Tensor, facts: BundleFacts, destination: str
) -> str:
    """Publish the bundle that `config` describes, of one network or of an ensemble's -> its absolute location.

    The formats are traced with and compared on `samples` (B, 3, H, W) uint8, images after `eval_transform`.
    TlrayError: the architecture cannot be exported, or a format does not compute what the model computes; nothing is
    published then.
    """
    assert not any(network.training for network in networks), "the model is in training mode"
    destination = storage.absolute(destination)
    model = assemble(networks, config)
    images = normalise(samples, config.image_preprocessing)
    with temporary_folder("export") as folder:
        write_formats(model, images, folder, config.title)
        save_file(state_of(networks, config), folder / WEIGHTS, _metadata(config))
        rebuilt = assemble([one.model for one in rebuild(config, load_file(folder / WEIGHTS))], config)
        agreement = check_formats(model, images, folder, rebuilt)
        _write_json(folder / CONFIG, config.model_dump(mode="json"))
        _write_json(folder / METRICS, {**facts.metrics, "agreement": agreement.model_dump(mode="json")})
        write_card(folder, config, facts.metrics, facts.data_summary, agreement, facts.warnings)
        publish(folder, checksum_lines(folder), destination)
    return destination


def bundled_backbone(model: nn.Module, backbone: BackboneConfig, preprocessing: Preprocessing) -> BackboneConfig:
    """What rebuilds the architecture of a trained model, without weights."""
    options = dict(backbone.options)
    if hasattr(model, "transform_input"):  # of torchvision's GoogLeNet and Inception V3: depends on their weights
        options["transform_input"] = model.transform_input
    height, _ = preprocessing.input_size
    return BackboneConfig(id=resolve_id(backbone.id), weights="none", input_size=height, options=options)


def shared_fields(classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """The fields of config.json that do not depend on what the networks are."""
    height, width = preprocessing.input_size
    return {
        "format_version": FORMAT_VERSION,
        "tlray_version": __version__,
        "libraries": {name: version(name) for name in LIBRARIES},
        "classes": tuple(classes),
        "preprocessing": preprocessing.to_dict(),
        "input": {"name": INPUT, "dtype": "float32", "shape": [BATCH, 3, height, width]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [BATCH, len(classes)]},
        "tolerance": {"absolute": ABSOLUTE_TOLERANCE, "relative_to_largest_logit": RELATIVE_TOLERANCE},
    }


def single_config(
    model: nn.Module,
    backbone: BackboneConfig,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    strategy: str,
    params: Mapping[str, Any],
) -> BundleConfig:
    """config.json of one trained network; `backbone` is what it was built from."""
    return BundleConfig(
        **shared_fields(classes, preprocessing),
        backbone=bundled_backbone(model, backbone, preprocessing),
        initial_weights=backbone.weights,
        strategy=strategy,
        params=dict(params),
    )


def _metadata(config: BundleConfig) -> dict[str, str]:
    """Lets the file of a single network serve as `weights:` of another run."""
    if config.backbone is None:
        return {}
    preprocessing = config.image_preprocessing
    backbone = split_id(config.backbone.id)
    return {
        "backbone": config.backbone.id,
        "library": backbone.library,
        "arch": backbone.name,
        "input_size": str(preprocessing.input_size[0]),
        "resize": str(preprocessing.resize),
        "interpolation": preprocessing.interpolation,
        "mean": ",".join(str(value) for value in preprocessing.mean),
        "std": ",".join(str(value) for value in preprocessing.std),
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
