"""The work that the programs of `benchmarks.sweep_vs_recipe` all do, written to a file that each of them reads.

    write_work(make_work(folder, shared, probes=True, partials=False, quick=False), path)
    work = read_work(path)

Ants and bees: 244 images train, the 153 of the data set's validation folder score. Both backbones start from one file
of weights each, and every trial draws its head from the same seed.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

PROBE_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PARTIAL_RATES = (0.00003, 0.0001, 0.0003, 0.001)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneWork:
    name: str  # of torchvision
    weights: str  # safetensors, torchvision's own keys
    mean: tuple[float, ...]  # of the images that the weights were trained on, in [0, 1]
    std: tuple[float, ...]
    last_stage: tuple[str, ...]  # modules at the last resolution


LAST_STAGE = {"mobilenet_v2": tuple(f"features.{number}" for number in range(14, 19)), "resnet18": ("layer4",)}


@dataclass(frozen=True)
class Work:
    """One part of the benchmark: the same trials for each program."""

    train: str  # folders with one sub-folder of JPEGs per class
    val: str
    backbones: tuple[BackboneWork, ...]
    probe_rates: tuple[float, ...]
    partial_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    weight_decay: float
    seed: int
    storage: str  # for runs, and for activations


def make_work(folder: Path, shared: Path, *, probes: bool, partials: bool, quick: bool) -> Work:
    """Copies the JPEGs once (a placeholder GIF lies among the ants) and draws resnet18's random weights once."""
    for split in ("train", "val"):
        if not (folder / split).exists():
            shutil.copytree(shared / "data/hymenoptera" / split, folder / split, ignore=shutil.ignore_patterns("*.gif"))
    weights = {"mobilenet_v2": shared / "weights/mobilenet_v2.safetensors", "resnet18": folder / "resnet18.safetensors"}
    if not weights["resnet18"].exists():
        _draw_weights(weights["resnet18"])
    backbones = tuple(
        BackboneWork(name, str(weights[name]), *_normalisation(weights[name]), stage)
        for name, stage in LAST_STAGE.items()
    )
    probe_rates = PROBE_RATES[2:4] if quick else PROBE_RATES
    partial_rates = PARTIAL_RATES[2:3] if quick else PARTIAL_RATES
    return Work(
        train=str(folder / "train"),
        val=str(folder / "val"),
        backbones=backbones,
        probe_rates=probe_rates if probes else (),
        partial_rates=partial_rates if partials else (),
        epochs=2 if quick else 10,
        batch_size=32,
        weight_decay=1e-4,
        seed=0,
        storage=str(folder / "storage"),
    )


def write_work(work: Work, path: Path) -> None:
    path.write_text(json.dumps(asdict(work), indent=1))


def read_work(path: str) -> Work:
    fields = json.loads(Path(path).read_text())
    backbones = tuple(
        BackboneWork(**{**one, "last_stage": tuple(one["last_stage"])}) for one in fields.pop("backbones")
    )
    return Work(backbones=backbones, **fields)


def _normalisation(weights: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as the file's metadata gives them, else ImageNet's: the same for all programs."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        metadata = file.metadata() or {}
    mean, std = (
        tuple(float(value) for value in metadata[name].split(",")) if name in metadata else default
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return mean, std


def _draw_weights(path: Path) -> None:
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(torchvision.models.resnet18().state_dict(), path, {"library": "torchvision", "arch": "resnet18"})
