"""The catalogue's ids, facts and preprocessing against what torchvision and timm say themselves."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tlray.catalogue import Preprocessing, default_preprocessing, list_models, resolve_id
from tlray.errors import BackboneError

torch.set_num_threads(1)


def prepared(image: Image.Image, spec: Preprocessing) -> torch.Tensor:
    """The image as the specification's words say it is prepared, written down once more with PIL."""
    mode = InterpolationMode(spec.interpolation)
    size: int | list[int] = [spec.resize, spec.resize] if spec.crop_mode == "squash" else spec.resize
    cropped = F.center_crop(F.resize(image, size, mode), list(spec.input_size))
    return F.normalize(F.to_tensor(cropped), list(spec.mean), list(spec.std))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((600, 450), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "name",
    ["resnet50.IMAGENET1K_V1", "resnet50", "efficientnet_b0", "inception_v3", "vit_b_16.IMAGENET1K_SWAG_E2E_V1"],
)
def test_preprocessing_of_a_torchvision_id_equals_the_weights_own_transforms(name: str, image: Image.Image) -> None:
    architecture, _, tag = name.partition(".")
    weights = torchvision.models.get_model_weights(architecture)
    expected = (weights[tag] if tag else weights.DEFAULT).transforms()(image)
    torch.testing.assert_close(prepared(image, default_preprocessing(f"torchvision/{name}")), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "tf_efficientnet_b0.ns_jft_in1k",
        "mobilenetv1_100",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "vit_large_patch14_clip_336.openai_ft_in12k_in1k",
        "convnext_tiny.in12k_ft_in1k_384",  # crop_mode squash
    ],
)
def test_preprocessing_of_a_timm_id_equals_timms_evaluation_transform(name: str, image: Image.Image) -> None:
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = create_transform(**config, is_training=False)(image)
    torch.testing.assert_close(prepared(image, default_preprocessing(f"timm/{name}")), expected, rtol=0, atol=0)


def test_preprocessing_survives_json() -> None:
    spec = default_preprocessing("timm/convnext_tiny.in12k_ft_in1k_384")
    assert spec.crop_mode == "squash"
    assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_another_input_size_scales_the_resize_in_proportion() -> None:
    spec = default_preprocessing("torchvision/resnet50.IMAGENET1K_V1").with_input_size(112)
    assert (spec.input_size, spec.resize) == ((112, 112), 128)


def test_an_image_that_is_not_square_is_refused() -> None:
    with pytest.raises(BackboneError, match="1024 x 768"):
        default_preprocessing("timm/vit_base_patch16_sapiens2")


def test_a_bare_name_of_one_library_gets_its_library() -> None:
    assert resolve_id("resnet10t") == "timm/resnet10t"
    assert resolve_id("alexnet") == "torchvision/alexnet"
    assert resolve_id("resnet50.a1_in1k") == "timm/resnet50.a1_in1k"
    assert resolve_id("resnet50.IMAGENET1K_V1") == "torchvision/resnet50.IMAGENET1K_V1"
    assert resolve_id("timm/resnet50") == "timm/resnet50"


def test_a_bare_name_of_both_libraries_lists_the_full_ids() -> None:
    with pytest.raises(BackboneError, match=r"ambiguous; write torchvision/resnet50 or timm/resnet50"):
        resolve_id("resnet50")


def test_an_unknown_backbone_names_near_misses_of_both_libraries() -> None:
    with pytest.raises(BackboneError) as caught:
        resolve_id("resnet_50")
    message = str(caught.value)
    assert "'resnet_50'" in message
    assert "torchvision/resnet50" in message
    assert "timm/resnet50" in message
    assert message.count("/") <= 5


def test_an_unknown_library_and_an_unknown_tag_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(BackboneError, match="torchvision and timm"):
        resolve_id("keras/resnet50")
    with pytest.raises(BackboneError, match=r"torchvision/resnet50\.IMAGENET1K_V1"):
        resolve_id("torchvision/resnet50.IMAGENET1K_V9")


def test_a_detection_model_is_no_backbone() -> None:
    with pytest.raises(BackboneError, match="unknown backbone"):
        resolve_id("torchvision/fasterrcnn_resnet50_fpn")


def test_listing_has_every_model_of_both_libraries() -> None:
    ids = [facts.id for facts in list_models()]
    assert sum(id.startswith("torchvision/") for id in ids) == 80
    assert sum(id.startswith("timm/") for id in ids) == len(timm.list_models())
    assert len(set(ids)) == len(ids)


def test_listing_takes_a_glob_or_a_part_of_the_id() -> None:
    assert {facts.id for facts in list_models("torchvision/vgg1?")} == {
        f"torchvision/vgg{layers}" for layers in (11, 13, 16, 19)
    }
    assert {facts.id for facts in list_models("squeezenet")} == {
        "torchvision/squeezenet1_0",
        "torchvision/squeezenet1_1",
    }


def test_facts_are_those_of_torchvisions_metadata() -> None:
    (facts,) = list_models("torchvision/resnet50")
    assert facts.weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")  # the default first
    assert (facts.input_size, facts.num_params) == (224, 25_557_032)
    assert (facts.top1, facts.top5, facts.gflops, facts.size_mb) == (80.858, 95.434, 4.089, 97.79)


def test_weights_without_a_classifier_are_left_out() -> None:
    (facts,) = list_models("torchvision/vgg1[6]")
    assert facts.weights == ("IMAGENET1K_V1",)


def test_facts_that_timm_does_not_publish_are_none() -> None:
    (facts,) = list_models("timm/resnet10t")
    assert facts.weights == ("c3_in1k",)
    assert facts.licence == "apache-2.0"
    assert (facts.num_params, facts.top1) == (None, None)


def test_the_catalogue_imports_neither_torch_nor_a_model_library() -> None:
    code = "import sys, tlray.catalogue; print({'torch', 'torchvision', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
