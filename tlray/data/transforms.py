"""Pixels -> a backbone's input. One image is (3, height, width) uint8 from decoding until the batch is normalised.

    pixels = decode(data, needed_size((height, width), preprocessing, "standard"))
    image = train_transform(torch.from_numpy(pixels).permute(2, 0, 1), preprocessing, "standard", generator)
    inputs = normalise(torch.stack(images), preprocessing)

What is done at evaluation is what the weights' own library does, to within a few of 256 grey levels.

Hand over what decoding gives as it is: its pixels lie channels last, which is what torch's resize of uint8 is fast
for. A 500x375 image to 256 takes 0.30 ms of CPU so, and 0.57 ms where `.contiguous()` came first; the pixels are the
same. Cropping before the resize instead of after it saves nothing, as the crop has to be copied. The result lies
channels last too: copied into a batch that does, it costs 0.007 ms, into one that does not, 0.045 ms.
"""

import math
from functools import lru_cache

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tlray.catalogue import Preprocessing

NATIVE_UINT8 = ("AVX2", "AVX512")  # where torchvision resizes uint8 as uint8
LARGEST_SHIFT = 0.125  # of the input's size, "light"
CROP_AREA = (0.35, 1.0)  # share of the image, "standard"
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
LARGEST_RESIZED = 2**24  # pixels: what a crop would cut away of a longer strip is not resized
CROP_TRIES = 10  # before the largest crop in the middle is taken


def eval_transform(image: torch.Tensor, p: Preprocessing, place: torch.Tensor | None = None) -> torch.Tensor:
    """(3, H, W) uint8 of any size -> (3, *p.input_size) uint8, the same every time.

    `place` (3, *p.input_size) uint8, channels last, is where the result may go: it is then what is returned.
    """
    if place is not None and _resize_is_all(image, p):
        return _resize_into(place, image)
    image = _resize(image, p, p.input_size)
    image = _pad(image, p.input_size, p)
    return F.center_crop(image, list(p.input_size))


def train_transform(
    image: torch.Tensor, p: Preprocessing, augmentation: str, generator: torch.Generator
) -> torch.Tensor:
    """(3, H, W) uint8 of any size -> (3, *p.input_size) uint8; all randomness comes from `generator`."""
    if augmentation == "none":
        return eval_transform(image, p)
    if augmentation == "light":
        image = _resize(image, p, _with_margin(p))
        image = _shifted_crop(image, p, generator)
        return _random_flip(image, generator)
    assert augmentation == "standard", augmentation
    image = _random_resized_crop(image, p, generator)
    return _random_flip(image, generator)


def needed_size(image_size: tuple[int, int], p: Preprocessing, augmentation: str) -> tuple[int, int] | None:
    """(height, width) of an image as shown -> the size below which the transforms would have to enlarge it.

    It is what to ask `decode` for. None: the whole image, as for "nearest", which would pick other pixels.
    """
    if p.interpolation == "nearest":
        return None
    height, width = image_size
    if augmentation != "standard":
        return _resized(height, width, p)
    smallest = math.sqrt(CROP_AREA[0] * height * width * CROP_RATIO[0])  # the short side of the narrowest crop
    crop_height, crop_width = min(smallest, height), min(smallest, width)
    return math.ceil(height * p.input_size[0] / crop_height), math.ceil(width * p.input_size[1] / crop_width)


def normalise(images: torch.Tensor, p: Preprocessing) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> float32 of the range that the backbone was trained on, on the same device."""
    mean, std = _constants(p, images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=64)
def _constants(p: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (3, 1, 1) on the device: made anew for each batch, a GPU would wait for the host."""
    with torch.inference_mode(False):  # an inference tensor is of no use where gradients are wanted
        return torch.tensor(p.mean, device=device).view(3, 1, 1), torch.tensor(p.std, device=device).view(3, 1, 1)


def _resize(image: torch.Tensor, p: Preprocessing, wanted: tuple[int, int]) -> torch.Tensor:
    """`wanted` is what will be cropped out of the middle; of a long strip there may be no more than that left."""
    height, width = image.shape[-2:]
    size = _resized(height, width, p)
    if p.crop_mode == "center" and size[0] * size[1] > LARGEST_RESIZED:
        return _resize_middle(image, p, wanted)
    return _resized_to(image, size, p)


def _resized_to(image: torch.Tensor, size: tuple[int, int], p: Preprocessing) -> torch.Tensor:
    return F.resize(image, list(size), interpolation=InterpolationMode(p.interpolation), antialias=True)


def _resize_middle(image: torch.Tensor, p: Preprocessing, wanted: tuple[int, int]) -> torch.Tensor:
    """The resize of a strip, cropped along it: of squares of its short side those around the middle are resized.

    As the whole strip would give it, where its long side is a multiple of its short one; else to a part of a pixel.
    """
    height, width = image.shape[-2:]
    axis = -1 if width >= height else -2
    short, long = min(height, width), max(height, width)
    length, size = max(_resized(height, width, p)), wanted[axis]
    first = round((length - size) / 2)  # of the strip, resized, as torchvision's crop counts
    start, stop = first // p.resize - 2, -(-(first + size) // p.resize) + 2  # squares; a filter sees two more at most
    start, stop = max(0, start), min(long // short, stop)
    if (stop - start) * p.resize < first - start * p.resize + size:
        return _resized_to(image, _resized(height, width, p), p)  # nearly all of it is wanted
    some = image.narrow(axis, start * short, (stop - start) * short)
    some = _resized_to(some, _resized(some.shape[-2], some.shape[-1], p), p)
    return some.narrow(axis, first - start * p.resize, size)


def _resize_is_all(image: torch.Tensor, p: Preprocessing) -> bool:
    """Whether the transform is just one call of torch's own kernel, as torchvision makes it on this processor."""
    return (
        p.interpolation == "bilinear"
        and torch.backends.cpu.get_cpu_capability() in NATIVE_UINT8
        and image.shape[-2:] != p.input_size
        and _resized(image.shape[-2], image.shape[-1], p) == p.input_size
    )


def _resize_into(place: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Saves the fresh pages of a result that would be copied into the batch at once."""
    torch.ops.aten._upsample_bilinear2d_aa.out(image[None], place.shape[-2:], False, None, None, out=place[None])
    return place


def _resized(height: int, width: int, p: Preprocessing) -> tuple[int, int]:
    """The size that an image has between the resize and the crop of the evaluation."""
    if p.crop_mode == "squash":
        return p.resize, p.resize
    if p.crop_mode == "border":  # the long side
        scale = p.resize / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if height <= width:  # the short side, as torchvision rounds
        return p.resize, int(p.resize * width / height)
    return int(p.resize * height / width), p.resize


def _pad(image: torch.Tensor, size: tuple[int, int], p: Preprocessing, mode: str = "constant") -> torch.Tensor:
    """At least `size`, the image in the middle; a constant border has the mean colour, as in timm's "border"."""
    missing = [max(0, wanted - there) for wanted, there in zip(size, image.shape[-2:], strict=True)]
    if missing == [0, 0]:
        return image
    top, left = (pixels // 2 for pixels in missing)
    padding = [left, top, missing[1] - left, missing[0] - top]
    fill: list[float] | None = [round(255 * value) for value in p.mean] if mode == "constant" else None
    return F.pad(image, padding, fill=fill, padding_mode=mode)


def _shifted_crop(image: torch.Tensor, p: Preprocessing, generator: torch.Generator) -> torch.Tensor:
    """The evaluation's crop, moved a little; what lies beyond the image repeats its edge."""
    height, width = p.input_size
    with_margin = _with_margin(p)
    down, right = (with_margin[0] - height) // 2, (with_margin[1] - width) // 2
    image = _pad(image, with_margin, p, "constant" if p.crop_mode == "border" else "edge")
    image = F.center_crop(image, list(with_margin))
    return F.crop(image, _random_int(2 * down, generator), _random_int(2 * right, generator), height, width)


def _with_margin(p: Preprocessing) -> tuple[int, int]:
    height, width = p.input_size
    return height + 2 * round(height * LARGEST_SHIFT), width + 2 * round(width * LARGEST_SHIFT)


def _random_resized_crop(image: torch.Tensor, p: Preprocessing, generator: torch.Generator) -> torch.Tensor:
    top, left, height, width = _random_box(image.shape[-2], image.shape[-1], generator)
    interpolation = InterpolationMode(p.interpolation)
    return F.resized_crop(image, top, left, height, width, list(p.input_size), interpolation, antialias=True)


def _random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, drawn as torchvision's RandomResizedCrop draws it."""
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for _ in range(CROP_TRIES):
        area = height * width * torch.empty(1).uniform_(*CROP_AREA, generator=generator).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return _random_int(height - h, generator), _random_int(width - w, generator), h, w
    h = min(height, round(width / CROP_RATIO[0]))
    w = min(width, round(height * CROP_RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _random_int(largest: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, largest + 1, (1,), generator=generator).item())


def _random_flip(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return F.horizontal_flip(image) if torch.rand(1, generator=generator).item() < 0.5 else image
