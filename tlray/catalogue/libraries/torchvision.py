"""torchvision's classification models: everything from the metadata of its weights."""

import math
from typing import TYPE_CHECKING, Any

from tlray.catalogue.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "torchvision"
EXTRA: str | None = None
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
SWAG = "the SWAG weights have a licence of their own, for non-commercial use: {url}"


def names() -> tuple[str, ...]:
    import torchvision

    return tuple(sorted(torchvision.models.list_models(module=torchvision.models)))


def tags(name: str) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(name))


def weights_entry(name: str, tag: str | None) -> Any:
    """torchvision's weights entry (a member of its WeightsEnum), the default one without a tag."""
    return next(entry for entry in _entries(name) if tag in (None, entry.name))


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    transforms = weights_entry(name, tag).transforms()
    (size,), (resize,) = transforms.crop_size, transforms.resize_size
    return Preprocessing(
        input_size=(size, size),
        resize=resize,
        crop_mode="center",
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    """Accuracy and size are published for every entry; only the SWAG weights state a licence, by its address."""
    from torchvision.models import get_model_builder

    entry = weights_entry(name, tag)
    meta, metrics = entry.meta, _imagenet(entry)
    licence = meta.get("license")
    is_swag = "SWAG" in (licence or "")
    return {
        "family": get_model_builder(name).__module__.rpartition(".")[2],
        "input_size": entry.transforms().crop_size[0],
        "num_classes": len(meta["categories"]),
        "num_params": meta["num_params"],
        "top1": metrics["acc@1"],
        "top5": metrics["acc@5"],
        "top_source": "torchvision's weights.meta",
        "gflops": meta["_ops"],
        "size_mb": meta["_file_size"],
        "licence": "swag" if is_swag else licence,
        "trained_on": "ig3.6b+in1k" if is_swag else "in1k",
        "note": SWAG.format(url=licence) if is_swag else None,
    }


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    """With the head of the weights whatever `num_classes` is: the caller replaces it."""
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    arguments: dict[str, Any] = {"progress": False}
    entry = weights_entry(name, tag)
    if name in WITH_AUXILIARY_HEADS and source != "pretrained":
        # their published weights were trained on inputs normalised by 0.5, which the model itself converts to
        arguments |= {"aux_logits": False, "init_weights": source == "none", "transform_input": source != "none"}
    if name.startswith("vit_"):
        arguments["image_size"] = size
        if source == "pretrained" and size != entry.transforms().crop_size[0]:
            model = get_model(name, weights=None, **arguments, **options)
            state = entry.get_state_dict(progress=False, check_hash=True)
            model.load_state_dict(interpolate_embeddings(size, model.patch_size, state))
            return model
    if name.startswith("maxvit_"):
        arguments["input_size"] = (size, size)
    weights = entry if source == "pretrained" else None
    model = get_model(name, weights=weights, **(arguments | options))
    if name in WITH_AUXILIARY_HEADS:
        model.aux_logits = False
        for head in ("aux1", "aux2", "AuxLogits"):
            setattr(model, head, None)
    return model


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    return tuple(weights_entry(name, tag).meta["categories"])


def _entries(name: str) -> list[Any]:
    """The entries with a classifier, the default first; `vgg16` also has one without (its metrics are NaN)."""
    import torchvision

    enum = torchvision.models.get_model_weights(name)
    entries = [entry for entry in enum if not math.isnan(_imagenet(entry).get("acc@1", math.nan))]
    return sorted(entries, key=lambda entry: entry is not enum.DEFAULT)


def _imagenet(weights: Any) -> dict[str, float]:
    return weights.meta["_metrics"].get("ImageNet-1K", {})
