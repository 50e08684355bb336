"""Evaluation as the weights' own libraries do it; augmentation that only its generator decides."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.v2 import functional as F

from tlray.catalogue import CropMode, Preprocessing, default_preprocessing
from tlray.data.transforms import (
    CROP_AREA,
    CROP_RATIO,
    _random_box,
    eval_transform,
    needed_size,
    normalise,
    train_transform,
)

SIZES = [(300, 451), (451, 300), (64, 64), (97, 500), (224, 224), (700, 640)]  # height, width
# Pillow and torch resize with the same filters and round at different places
LARGEST_DIFFERENCE = 3  # of 255 grey levels, in any pixel
MEAN_DIFFERENCE = 0.3
PLAIN = Preprocessing(
    input_size=(64, 64), resize=72, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
)


@functools.cache
def picture(height: int, width: int) -> Image.Image:
    """Noise at two scales: edges for the filters to differ on."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((width, height))
    fine = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse, fine.filter(ImageFilter.GaussianBlur(1)), 0.5)


def grey_levels(normalised: torch.Tensor, p: Preprocessing) -> torch.Tensor:
    return (normalised * torch.tensor(p.std).view(3, 1, 1) + torch.tensor(p.mean).view(3, 1, 1)) * 255


def assert_same_pixels(ours: torch.Tensor, theirs: torch.Tensor, p: Preprocessing) -> None:
    """Compares normalised images in grey levels."""
    difference = (grey_levels(ours, p) - grey_levels(theirs, p)).abs()
    assert ours.shape == theirs.shape
    assert difference.max() <= LARGEST_DIFFERENCE + 0.01
    assert difference.mean() <= MEAN_DIFFERENCE


def ours(image: Image.Image, p: Preprocessing) -> torch.Tensor:
    return normalise(eval_transform(pil_to_tensor(image), p)[None], p)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "weights",
    [
        torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
        torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
        torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # 384 pixels, no margin
    ],
    ids=str,
)
def test_evaluation_is_torchvisions(weights: Any, size: tuple[int, int]) -> None:
    model = type(weights).__name__.removesuffix("_Weights").lower()
    p = default_preprocessing(f"torchvision/{model}.{weights.name}")
    image = picture(*size)
    assert_same_pixels(ours(image, p), weights.transforms()(image), p)
    torch.testing.assert_close(
        grey_levels(ours(image, p), p), grey_levels(weights.transforms()(pil_to_tensor(image)), p), atol=1.01, rtol=0
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"), [("center", 0.875), ("center", 1.0), ("squash", 1.0), ("squash", 0.9), ("border", 0.95)]
)
def test_evaluation_is_timms(crop_mode: CropMode, crop_pct: float, interpolation: Any, size: tuple[int, int]) -> None:
    transform = timm.data.create_transform(
        (3, 96, 96), crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
    )
    p = Preprocessing(
        input_size=(96, 96),
        resize=int(96 / crop_pct),
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=timm.data.IMAGENET_DEFAULT_MEAN,
        std=timm.data.IMAGENET_DEFAULT_STD,
    )
    assert_same_pixels(ours(picture(*size), p), transform(picture(*size)), p)


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base_patch16_clip_224.openai", "mobilenetv3_small_100"])
def test_evaluation_with_a_timm_models_own_figures_is_timms(name: str) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    p = default_preprocessing(f"timm/{name}")
    assert_same_pixels(ours(picture(300, 451), p), timm.data.create_transform(**config)(picture(300, 451)), p)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    image = pil_to_tensor(picture(97, 500))
    assert torch.equal(train_transform(image, PLAIN, "none", torch.Generator()), eval_transform(image, PLAIN))


@pytest.mark.parametrize("augmentation", ["light", "standard"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(97, 500), (64, 64), (1, 3), (500, 97)])
def test_augmented_images_have_the_inputs_size_and_depend_on_the_generator_alone(
    size: tuple[int, int], crop_mode: CropMode, augmentation: str
) -> None:
    p, image = replace(PLAIN, crop_mode=crop_mode), pil_to_tensor(picture(*size))
    before = image.clone()
    torch.manual_seed(1)
    first = [train_transform(image, p, augmentation, torch.Generator().manual_seed(seed)) for seed in range(6)]
    torch.manual_seed(2)
    again = [train_transform(image, p, augmentation, torch.Generator().manual_seed(seed)) for seed in range(6)]
    assert all(image.shape == (3, 64, 64) and image.dtype == torch.uint8 for image in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], other) for other in first)
    assert torch.equal(image, before)


def test_light_augmentation_is_the_evaluations_crop_shifted_by_up_to_an_eighth_and_flipped() -> None:
    p = replace(PLAIN, resize=96)  # so wide a margin that the shifted crop stays inside the image
    image = pil_to_tensor(picture(96, 96))
    seen = set()
    for seed in range(200):
        result = train_transform(image, p, "light", torch.Generator().manual_seed(seed))
        matches = [
            (down, right, flipped)
            for down in range(-8, 9)
            for right in range(-8, 9)
            for flipped, candidate in ((False, result), (True, result.flip(-1)))
            if torch.equal(candidate, image[:, 16 + down : 80 + down, 16 + right : 80 + right])
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert {flipped for _, _, flipped in seen} == {True, False}
    assert min(down for down, _, _ in seen) == min(right for _, right, _ in seen) == -8
    assert max(down for down, _, _ in seen) == max(right for _, right, _ in seen) == 8


@pytest.mark.parametrize("size", SIZES)
def test_standard_crops_are_torchvisions(size: tuple[int, int]) -> None:
    reference = v2.RandomResizedCrop(64, scale=CROP_AREA, ratio=CROP_RATIO)
    for seed in range(50):
        torch.manual_seed(seed)
        theirs = reference.make_params([torch.empty(3, *size)])
        box = _random_box(*size, torch.Generator().manual_seed(seed))
        assert box == (theirs["top"], theirs["left"], theirs["height"], theirs["width"])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_standard_augmentation_is_torchvisions_crop_or_its_mirror_image(interpolation: Any) -> None:
    p, image = replace(PLAIN, interpolation=interpolation), pil_to_tensor(picture(300, 451))
    reference = v2.RandomResizedCrop(
        64, scale=CROP_AREA, ratio=CROP_RATIO, interpolation=v2.InterpolationMode(interpolation), antialias=True
    )
    flipped = []
    for seed in range(20):
        torch.manual_seed(seed)
        theirs = reference(image)
        result = train_transform(image, p, "standard", torch.Generator().manual_seed(seed))
        flipped.append(not torch.equal(result, theirs))
        assert torch.equal(result.flip(-1) if flipped[-1] else result, theirs)
    assert set(flipped) == {True, False}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augmentation", ["none", "light", "standard"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_order_in_which_pixels_lie_in_memory_changes_nothing(
    size: tuple[int, int], augmentation: str, interpolation: Any, crop_mode: CropMode
) -> None:
    p = replace(PLAIN, interpolation=interpolation, crop_mode=crop_mode)
    planes = pil_to_tensor(picture(*size))
    channels_last = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    results = [
        train_transform(image, p, augmentation, torch.Generator().manual_seed(3)) for image in (planes, channels_last)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("size", [(375, 500), (224, 224), (1, 500), (500, 1), (1, 1), (3, 7), (224, 500)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_result_that_goes_straight_into_a_batch_is_the_one_that_is_copied_there(
    size: tuple[int, int], interpolation: Any
) -> None:
    squashed = Preprocessing(
        input_size=(224, 224),
        resize=224,
        crop_mode="squash",
        interpolation=interpolation,
        mean=(0.5,) * 3,
        std=(1,) * 3,
    )
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).permute(2, 0, 1)
    for num_images in (1, 3):
        batch = torch.zeros((num_images, 3, 224, 224), dtype=torch.uint8).to(memory_format=torch.channels_last)
        result = eval_transform(image, squashed, batch[num_images - 1])
        assert torch.equal(result, eval_transform(image, squashed))
        assert not batch[: num_images - 1].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_needed_size_is_that_after_the_evaluations_resize(
    size: tuple[int, int], augmentation: str, crop_mode: CropMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    p = replace(PLAIN, crop_mode=crop_mode)
    resize = F.resize
    monkeypatch.setattr(F, "resize", lambda *args, **named: seen.append(resize(*args, **named)) or seen[-1])
    train_transform(pil_to_tensor(picture(*size)), p, augmentation, torch.Generator())
    assert needed_size(size, p, augmentation) == tuple(seen[0].shape[-2:])


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (97, 500), (700, 640), (3000, 4000)])
def test_at_the_needed_size_no_random_crop_is_enlarged(size: tuple[int, int]) -> None:
    needed = needed_size(size, PLAIN, "standard")
    assert needed is not None
    smallest = [min(box) for box in zip(*(crop_sizes(size, seed) for seed in range(3000)), strict=True)]
    for side in (0, 1):  # a crop of `smallest` pixels becomes one of the input's size
        at_needed = smallest[side] * needed[side] / size[side]
        assert PLAIN.input_size[side] * 0.99 <= at_needed <= PLAIN.input_size[side] * 1.15


def crop_sizes(size: tuple[int, int], seed: int) -> tuple[int, int]:
    return _random_box(*size, torch.Generator().manual_seed(seed))[2:]


@pytest.mark.parametrize("augmentation", ["none", "light", "standard"])
def test_transforms_that_pick_single_pixels_need_the_whole_image(augmentation: str) -> None:
    assert needed_size((3000, 4000), replace(PLAIN, interpolation="nearest"), augmentation) is None


def test_normalised_values_have_the_stated_mean_and_spread() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    p = replace(PLAIN, mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 0.25))
    result = normalise(images, p)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 0.0, 4.0]))
    assert images.flatten().tolist() == [0, 51, 255]
