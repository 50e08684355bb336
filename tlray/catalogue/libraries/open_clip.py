"""open_clip (MIT): the visual towers of its image-text models, CoCa among them, with a linear head.

The towers that open_clip takes from timm, and models whose text tower needs another package, are left out. Each weights
tag brings its preprocessing and its activation (some were trained with an approximation of GELU). Where the package is
not installed, `names` and `facts` know the models of `ROWS` only, and `construct` says which extra installs it.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from tlray.catalogue.libraries.optional import is_installed, load
from tlray.catalogue.preprocessing import CropMode, Preprocessing
from tlray.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "open_clip"
EXTRA: str | None = "open_clip"
COCA_TAGS = ("laion2b_s13b_b90k", "mscoco_finetuned_laion2b_s13b_b90k")
COCA_NOTE = (
    "the image tower of the open reimplementation; Google's CoCa with 2.1 billion parameters was never published. "
    "The mscoco_finetuned weights were tuned for captions and classify worse"
)
COCA = {
    "weights": COCA_TAGS,
    "input_size": 224,
    "top_source": "zero-shot with text prompts, open_clip docs/openclip_results.csv",
    "trained_on": "LAION-2B",
    "note": COCA_NOTE,
}
# What the package does not say, of the default weights: parameters of the tower alone, multiply-adds of one image, MiB
# of the file, which holds the text tower too.
ROWS: dict[str, dict[str, Any]] = {
    "coca_ViT-B-32": COCA
    | {"num_params": 89_164_032, "gflops": 4.60, "size_mb": 967, "feature_width": 512, "top1": 63.31},
    "coca_ViT-L-14": COCA
    | {"num_params": 306_724_864, "gflops": 81.82, "size_mb": 2435, "feature_width": 768, "top1": 75.61},
}
CROP_MODES: dict[str, CropMode] = {"shortest": "center", "squash": "squash", "longest": "border"}
# How tags begin -> what the weights were trained on, their licence, whether it binds. Of other tags nothing is known.
ORIGINS: dict[str, tuple[str, str, bool]] = {
    "openai": ("WebImageText (400 million pairs)", "mit", False),
    "laion400m": ("LAION-400M", "mit", False),
    "laion2b": ("LAION-2B", "mit", False),
    "mscoco_finetuned_laion2b": ("LAION-2B, MS COCO captions", "mit", False),
    "datacomp": ("DataComp", "mit", False),
    "commonpool": ("CommonPool", "mit", False),
    "metaclip": ("MetaCLIP", "cc-by-nc-4.0", True),
    "dfn": ("Data Filtering Networks", "apple, its own licence", True),
}
TEXT_TOWER = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}  # built and thrown away


def names() -> tuple[str, ...]:
    if not is_installed("open_clip"):
        return tuple(sorted(ROWS))
    open_clip = _package()
    return tuple(sorted(name for name in open_clip.list_models() if _is_ours(open_clip.get_model_config(name), name)))


def tags(name: str) -> tuple[str, ...]:
    if not is_installed("open_clip"):
        return tuple(ROWS[name]["weights"])
    return tuple(_package().list_pretrained_tags_by_model(name))


def preprocessing(name: str, tag: str | None) -> Preprocessing:
    config = _package().get_pretrained_cfg(name, tag or tags(name)[0])
    size = _size(name)
    return Preprocessing(
        input_size=(size, size),
        resize=size,
        crop_mode=CROP_MODES[config["resize_mode"]],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def facts(name: str, tag: str | None) -> dict[str, Any]:
    tag = tag or tags(name)[0]
    origin = next((ORIGINS[start] for start in ORIGINS if tag.startswith(start)), None)
    trained_on, licence, binds = origin or (None, None, False)
    if "CLIPA" in name:
        licence = None  # other people's training on the same data
    known: dict[str, Any] = {
        "id": f"{LIBRARY}/{name}",
        "library": LIBRARY,
        "name": name,
        "tag": tag,
        "weights": tags(name),
        "family": "coca" if name.startswith("coca_") else "clip",
        "extra": EXTRA,
    }
    if is_installed("open_clip"):
        known |= {
            "input_size": _size(name),
            "feature_width": _package().get_model_config(name)["embed_dim"],
            "num_params": _num_params(name),
            "note": "the image tower of an image-text model; it has no classifier of its own",
        }
    known |= {key: value for key, value in ROWS.get(name, {}).items() if key != "weights"}
    if tag != tags(name)[0]:  # the published accuracy is of the default weights
        known |= {"top1": None, "top_source": None}
    return known | {"trained_on": trained_on, "licence": licence, "licence_binds": binds}


def construct(
    name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
) -> "nn.Module":
    """The tower, projection included, under `visual` and a new linear head `fc`."""
    open_clip = _package()
    from tlray.catalogue.libraries.architectures.headed import HeadedTower

    if options:
        raise BackboneError(f"{LIBRARY}/{name} takes no options, not {options}; leave options out")
    if source == "pretrained":
        tag = tag or tags(name)[0]
        quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
        try:
            model = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick_gelu, force_image_size=size)
        except RuntimeError as error:
            if "Failed to download" not in str(error):
                raise
            raise OSError(str(error)) from None  # as the other libraries say that a download failed
        visual = model.visual
    else:
        visual = _tower(name, size, tag)
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = False  # CoCa's text decoder would need them beside the embedding
    return HeadedTower(visual, open_clip.get_model_config(name)["embed_dim"], num_classes)


def labels(name: str, tag: str | None) -> tuple[str, ...]:
    raise BackboneError(f"{LIBRARY}/{name}: no labels are known, its weights have no classifier; train a head first")


def _package() -> Any:
    return load("open_clip", extra="open_clip")


def _is_ours(config: dict[str, Any], name: str) -> bool:
    return (
        "timm_model_name" not in config["vision_cfg"]
        and "hf_model_name" not in config["text_cfg"]
        and not name.endswith("-quickgelu")  # the same weights again; here the activation comes with the tag
        and bool(tags(name))
    )


def _size(name: str) -> int:
    if name in ROWS:
        return int(ROWS[name]["input_size"])
    return int(_package().get_model_config(name)["vision_cfg"]["image_size"])


def _tower(name: str, size: int, tag: str | None) -> "nn.Module":
    """The visual tower with random weights, the activation that of the tag or of the default weights."""
    open_clip = _package()
    config = open_clip.get_model_config(name)
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag or tags(name)[0]).get("quick_gelu", False))
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"] | {"image_size": size},
        text_cfg=TEXT_TOWER,
        quick_gelu=quick_gelu,
    )
    return model.visual


@cache
def _num_params(name: str) -> int:
    """Of the tower, counted on the meta device."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _tower(name, _size(name), None).parameters())
