"""Every architecture that tlray promises, with random weights: split at three cuts or more, and folded.

    pytest tests/unit/test_split_catalogue.py -m slow -rP      # figures of each model

Ten minutes on one core and 6 GB at most: images as small as an architecture takes, one model at a time.
"""

import gc
from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from torch import nn

from tests.unit.families import by_hand, images_for, randomise_norms, untrained
from tlray.models.backbone import Backbone
from tlray.models.fold import folded
from tlray.models.freeze import freeze, train_mode
from tlray.models.split import find_cut, frozen_prefix, trainable_suffix

torch.set_num_threads(1)

# id -> input size
CATALOGUE = {
    "torchvision/alexnet": 64,
    "torchvision/googlenet": 64,
    "torchvision/inception_v3": 107,
    "timm/inception_v3": 107,
    "timm/inception_v4": 107,
    "timm/inception_resnet_v2": 107,
    "torchvision/vgg16": 64,
    "timm/vgg16": 64,
    "torchvision/vgg19": 64,
    "timm/vgg19": 64,
    "torchvision/resnet50": 64,
    "timm/resnet50": 64,
    "torchvision/resnet101": 64,
    "timm/resnet101": 64,
    "torchvision/resnet152": 64,
    "timm/resnet152": 64,
    "timm/resnetv2_50": 64,
    "timm/resnetv2_101": 64,
    "timm/resnetv2_152": 64,
    **{f"torchvision/efficientnet_b{size}": 64 for size in range(8)},
    **{f"timm/tf_efficientnet_b{size}": 64 for size in range(8)},
    "torchvision/densenet121": 64,
    "timm/densenet121": 64,
    "torchvision/densenet169": 64,
    "timm/densenet169": 64,
    "torchvision/densenet201": 64,
    "timm/densenet201": 64,
    "timm/densenet264d": 64,
    "timm/mobilenetv1_100": 64,
    "torchvision/mobilenet_v2": 64,
    "timm/mobilenetv2_100": 64,
    "torchvision/mobilenet_v3_large": 64,
    "torchvision/mobilenet_v3_small": 64,
    "timm/mobilenetv3_large_100": 64,
    "timm/mobilenetv3_small_100": 64,
    "timm/nasnetalarge": 128,
    "timm/legacy_xception": 96,
    "timm/xception41": 96,
    "torchvision/vit_b_16": 64,
    "torchvision/vit_b_32": 64,
    "torchvision/vit_l_16": 64,
    "torchvision/vit_l_32": 64,
    "torchvision/vit_h_14": 56,
    "timm/vit_base_patch16_224": 64,
    "timm/vit_small_patch16_224": 64,
    "timm/vit_large_patch16_224": 64,
    "timm/deit_base_distilled_patch16_224": 64,
    "timm/resnetv2_50x1_bit": 64,
    "timm/resnetv2_152x2_bit": 64,
    "timm/resnetv2_152x4_bit": 64,
    "timm/tf_efficientnet_l2": 64,
}
# architectures that neither torchvision nor timm has
ELSEWHERE = {
    "BN-Inception, NASNet-Mobile, pre-activation ResNets with Keras' layout": "need pytorchcv or pretrainedmodels",
    "YOLOv8 and YOLOv9 classifiers": "need ultralytics",
    "YOLOv7 and YOLOv9 backbones": "are not on PyPI",
    "CoCa's visual tower": "needs open_clip",
    "NASNet-B, NASNet-C, OmniVec": "no code was published",
}
LARGEST_COPIED = 400e6  # parameters of which a second copy fits
LARGEST_TRAINED = 150e6  # parameters of which the gradients of one half fit
FOLDED_TOLERANCE = 1e-4  # of the largest value; rounding of other sums in another order
STORED_TOLERANCE = 1e-4  # likewise: a contiguous copy takes other kernels than a transposed or channels-last value


@pytest.fixture(autouse=True)
def _one_model_at_a_time() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("reason", ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_architecture_of_other_libraries_splits(reason: str) -> None:
    pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_architecture_splits_without_a_difference(name: str) -> None:
    check(name, untrained(name, CATALOGUE[name], {}))


@pytest.mark.slow
def test_densenet264_splits_without_a_difference() -> None:
    from torchvision.models import DenseNet

    model = DenseNet(32, (6, 12, 64, 48), 64, num_classes=3)
    randomise_norms(model)
    check("densenet264", by_hand(model, 64, head="classifier"))


def check(name: str, backbone: Backbone) -> None:
    count = len(backbone.blocks)
    cuts = [find_cut(backbone, number) for number in sorted({1, count // 4, count // 2, 3 * count // 4, count} - {0})]
    assert len(cuts) >= 3
    num_parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    images = images_for(backbone, count=2)
    with torch.no_grad():
        expected = backbone.model(images)
    prefix = frozen_prefix(backbone, cuts)
    outputs = prefix(images)
    stored_difference = 0.0
    for cut, values in zip(cuts, outputs, strict=True):
        suffix = trainable_suffix(backbone, cut.num_frozen)
        with torch.no_grad():
            assert torch.equal(suffix(*values), expected), cut
            stored = suffix(*(value.contiguous() for value in values))
        stored_difference = max(stored_difference, difference(stored, expected))
    assert stored_difference < STORED_TOLERANCE
    figures = f"{name}: {len(cuts)} cuts of {count} equal, stored {stored_difference:.1e}"
    if num_parameters < LARGEST_COPIED:
        fast = folded(prefix)
        pairs = zip(chain(*fast(images)), chain(*outputs), strict=True)
        folded_difference = max(difference(value, reference) for value, reference in pairs)
        assert folded_difference < FOLDED_TOLERANCE
        figures += f", folded {folded_difference:.1e}, {num_norms(prefix)} norms -> {num_norms(fast)}"
        del fast
    print(figures)
    del prefix, outputs, suffix, values
    for num_frozen in (count - 1, count // 2) if num_parameters < LARGEST_TRAINED else (count - 1,):
        check_gradients(backbone, num_frozen, images)


def check_gradients(backbone: Backbone, num_frozen: int, images: torch.Tensor) -> None:
    """Of a step in training mode; statistics that it updates play no part in it."""
    trainable_blocks = len(backbone.blocks) - num_frozen
    (values,) = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])(images)
    suffix = trainable_suffix(backbone, num_frozen)
    freeze(backbone, trainable_blocks)
    train_mode(backbone, trainable_blocks, freeze_bn=True)
    trained = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in suffix.parameters()} == {id(parameter) for parameter in trained}
    gradients = []
    for model, inputs in ((backbone.model, (images,)), (suffix, values)):
        torch.manual_seed(3)
        loss = nn.functional.cross_entropy(model(*inputs), torch.tensor([0, 2]))
        gradients.append(torch.autograd.grad(loss, trained))
    assert all(torch.equal(whole, part) for whole, part in zip(*gradients, strict=True))


def difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((value - expected).abs().max() / expected.abs().max())


def num_norms(module: nn.Module) -> int:
    return sum(isinstance(inner, nn.modules.batchnorm._BatchNorm) for inner in module.modules())
