"""The four backbones, all with ImageNet weights, and how they see an image; ../shared/weights/NAME.safetensors."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """What a configuration of tlray calls it; options are those of the library's constructor."""

    id: str
    options: dict[str, Any] = field(default_factory=dict)


BACKBONES = {
    "mobilenet_v2": Choice("torchvision/mobilenet_v2.IMAGENET1K_V1"),
    "mobilenetv1_100": Choice("timm/mobilenetv1_100"),
    "squeezenet1_0": Choice("torchvision/squeezenet1_0"),
    "mobilenetv2_035": Choice("timm/mobilenetv2_035", {"pad_type": "same"}),
}
INPUT_SIZE = 112  # pixels
RESIZE = 128  # short side before the crop at evaluation, as 256 is to 224


def backbone_entries(shared: str) -> list[dict[str, Any]]:
    """`backbones` of a configuration of tlray."""
    return [
        {
            "id": one.id,
            "weights": f"{shared}/weights/{name}.safetensors",
            "input_size": INPUT_SIZE,
            **({"options": one.options} if one.options else {}),
        }
        for name, one in BACKBONES.items()
    ]
