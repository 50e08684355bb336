"""What a backbone is called and what its library says about it: ids, published facts, preprocessing.

    resolve_id("resnet10t")            -> "timm/resnet10t"
    list_models("torchvision/resnet*") -> facts of every match
    default_preprocessing("torchvision/mobilenet_v2")

An id is `library/name` or `library/name.tag`; without a tag it means the library's default weights. Everything is read
from the libraries' own metadata; torch is imported inside the functions, not with this module.
"""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

from tlray.errors import BackboneError, nearest

Library = Literal["torchvision", "timm"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a backbone's input at evaluation; it belongs to the weights, not to the architecture."""

    input_size: tuple[int, int]  # height, width after the crop, pixels
    resize: int  # short side before the crop (crop_mode "squash": both sides; "border": the long side), pixels
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, float, float]  # of values in 0..1, per channel R, G, B
    std: tuple[float, float, float]

    def with_input_size(self, size: int) -> "Preprocessing":
        """The same for square inputs of `size` pixels, the resize before the crop scaled in proportion."""
        return replace(self, input_size=(size, size), resize=round(self.resize * size / self.input_size[0]))

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`, also after a round trip through JSON."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One architecture; the figures are those of its default weights and None where the library publishes none."""

    id: str
    weights: tuple[str, ...]  # tags that can be downloaded, the default first
    input_size: int  # pixels, height
    num_params: int | None = None  # with the library's own head
    top1: float | None = None  # ImageNet-1k accuracy, percent
    top5: float | None = None
    gflops: float | None = None  # multiply-adds of one image, as the library counts them
    size_mb: float | None = None  # download
    licence: str | None = None


@dataclass(frozen=True)
class ModelId:
    """An id taken apart; `tag` is None for the library's default weights."""

    library: Library
    name: str
    tag: str | None

    @property
    def arch(self) -> str:
        return f"{self.library}/{self.name}"


def resolve_id(name: str) -> str:
    """`name` with its library in front; BackboneError when no model is called so, or more than one."""
    library, slash, bare = name.partition("/")
    if slash and library not in LIBRARIES:
        raise BackboneError(f"unknown library {library!r} in {name!r}; backbones come from {' and '.join(LIBRARIES)}")
    candidates: tuple[Library, ...] = (cast(Library, library),) if slash else LIBRARIES
    bare = bare if slash else name
    architecture, _, tag = bare.partition(".")
    homes = [home for home in candidates if architecture in _architectures(home)]
    if not homes:
        near = ", ".join(_near_misses(architecture))
        raise BackboneError(f"unknown backbone {name!r}; " + (f"did you mean {near}" if near else "see `tlray models`"))
    if tag:
        with_tag = [home for home in homes if tag in known_tags(home, architecture)]
        if not with_tag:
            tags = ", ".join(f"{home}/{architecture}.{t}" for home in homes for t in known_tags(home, architecture))
            raise BackboneError(f"{name!r}: no weights are called {tag!r}; there are {tags or 'none'}")
        homes = with_tag
    if len(homes) > 1:
        raise BackboneError(f"{name!r} is ambiguous; write {' or '.join(f'{home}/{bare}' for home in homes)}")
    return f"{homes[0]}/{bare}"


def split_id(full_id: str) -> ModelId:
    """The parts of an id that `resolve_id` returned."""
    library, _, bare = full_id.partition("/")
    name, _, tag = bare.partition(".")
    return ModelId(cast(Library, library), name, tag or None)


def known_tags(library: Library, name: str) -> tuple[str, ...]:
    """Tags of the weights that can be downloaded for an architecture, the library's default first."""
    if library == "torchvision":
        return tuple(weights.name for weights in _torchvision_weights(name))
    import timm

    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    config = timm.get_pretrained_cfg(name)
    default = config.tag if config is not None else None
    return tuple(sorted(filter(None, tags), key=lambda tag: tag != default))


def default_preprocessing(full_id: str) -> Preprocessing:
    """The preprocessing of the id's weights, of the library's default weights when it names none."""
    model = split_id(full_id)
    if model.library == "torchvision":
        transforms = torchvision_weights(model).transforms()
        (size,), (resize,) = transforms.crop_size, transforms.resize_size
        return Preprocessing(
            input_size=(size, size),
            resize=resize,
            crop_mode="center",
            interpolation=transforms.interpolation.value,
            mean=_triple(transforms.mean),
            std=_triple(transforms.std),
        )
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm_config(model))
    _, height, width = config["input_size"]
    if height != width:
        raise BackboneError(
            f"{full_id} takes images of {height} x {width} pixels, and tlray prepares square ones; choose another"
        )
    return Preprocessing(
        input_size=(height, width),
        resize=math.floor(height / config["crop_pct"]),
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def list_models(pattern: str = "") -> list[ModelFacts]:
    """Facts of every architecture whose id matches `pattern` (a glob over the id or the name, or a part of it)."""
    ids = [(library, name) for library in LIBRARIES for name in _architectures(library)]
    wanted = [(library, name) for library, name in ids if _matches(f"{library}/{name}", pattern)]
    facts = {"torchvision": _torchvision_facts, "timm": _timm_facts}
    return [facts[library](name) for library, name in wanted]


def torchvision_weights(model: ModelId) -> Any:
    """torchvision's weights entry (a member of its WeightsEnum) that the id means."""
    entries = _torchvision_weights(model.name)
    return next(entry for entry in entries if model.tag in (None, entry.name))


def timm_config(model: ModelId) -> dict[str, Any]:
    """timm's `pretrained_cfg` that the id means, as a dictionary; of weights that exist or not."""
    import timm

    config = timm.get_pretrained_cfg(f"{model.name}.{model.tag}" if model.tag else model.name)
    return config.to_dict() if config is not None else {}


def _architectures(library: Library) -> list[str]:
    if library == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)
    import timm

    return timm.list_models()


def _torchvision_weights(name: str) -> list[Any]:
    """The entries with a classifier, the default first; `vgg16` also has one without (its metrics are NaN)."""
    import torchvision

    enum = torchvision.models.get_model_weights(name)
    entries = [entry for entry in enum if not math.isnan(_imagenet(entry).get("acc@1", math.nan))]
    return sorted(entries, key=lambda entry: entry is not enum.DEFAULT)


def _imagenet(weights: Any) -> dict[str, float]:
    return weights.meta["_metrics"].get("ImageNet-1K", {})


def _torchvision_facts(name: str) -> ModelFacts:
    entries = _torchvision_weights(name)
    meta, metrics = entries[0].meta, _imagenet(entries[0])
    return ModelFacts(
        id=f"torchvision/{name}",
        weights=tuple(entry.name for entry in entries),
        input_size=entries[0].transforms().crop_size[0],
        num_params=meta["num_params"],
        top1=metrics["acc@1"],
        top5=metrics["acc@5"],
        gflops=meta["_ops"],
        size_mb=meta["_file_size"],
        licence=meta.get("license"),
    )


def _timm_facts(name: str) -> ModelFacts:
    config = timm_config(ModelId("timm", name, None))
    return ModelFacts(
        id=f"timm/{name}",
        weights=known_tags("timm", name),
        input_size=config.get("input_size", (3, 224, 224))[1],
        licence=config.get("license"),
    )


def _matches(full_id: str, pattern: str) -> bool:
    if any(character in pattern for character in "*?["):
        return fnmatch.fnmatch(full_id, pattern) or fnmatch.fnmatch(full_id.partition("/")[2], pattern)
    return pattern in full_id


def _near_misses(architecture: str) -> list[str]:
    homes: dict[str, list[str]] = {}
    for library in LIBRARIES:
        for name in _architectures(library):
            homes.setdefault(name, []).append(f"{library}/{name}")
    near = nearest(architecture.lower(), homes, count=5)
    return [full_id for name in near for full_id in homes[name]][:5]


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
