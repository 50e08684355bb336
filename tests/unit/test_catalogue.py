"""The catalogue's ids, facts and preprocessing against what torchvision and timm say themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tlray.catalogue import Preprocessing, default_preprocessing, facts_of, libraries, list_models, listing, resolve_id
from tlray.catalogue.data import file_contents
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
    assert resolve_id("densenet264") == "tlray/densenet264"


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
    with pytest.raises(BackboneError, match="come from torchvision, timm, "):
        resolve_id("keras/resnet50")
    with pytest.raises(BackboneError, match=r"torchvision/resnet50\.IMAGENET1K_V1"):
        resolve_id("torchvision/resnet50.IMAGENET1K_V9")


def test_a_detection_model_is_no_backbone() -> None:
    with pytest.raises(BackboneError, match="unknown backbone"):
        resolve_id("torchvision/fasterrcnn_resnet50_fpn")


def test_listing_has_every_set_of_weights_and_every_architecture_without_any() -> None:
    models = list_models()
    assert len({facts.id for facts in models}) == len(models)
    assert len({facts.name for facts in models if facts.library == "torchvision"}) == 80
    timms = [facts for facts in models if facts.library == "timm"]
    assert {f"{facts.name}.{facts.tag}" for facts in timms if facts.tag} == set(timm.list_pretrained())
    assert {facts.name for facts in timms} == set(timm.list_models())


def test_listing_takes_a_glob_or_a_part_of_the_id() -> None:
    assert {facts.arch for facts in list_models("torchvision/vgg1?")} == {
        f"torchvision/vgg{layers}" for layers in (11, 13, 16, 19)
    }
    assert {facts.id for facts in list_models("squeezenet") if facts.extra is None} == {
        "torchvision/squeezenet1_0.IMAGENET1K_V1",
        "torchvision/squeezenet1_1.IMAGENET1K_V1",
    }
    assert {facts.tag for facts in list_models("resnet18.a?_in1k")} == {"a1_in1k", "a2_in1k", "a3_in1k"}


def test_facts_are_those_of_torchvisions_metadata() -> None:
    facts = facts_of("torchvision/resnet50")
    assert facts.id == "torchvision/resnet50.IMAGENET1K_V2"
    assert facts.weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")  # the default first
    assert (facts.input_size, facts.num_params) == (224, 25_557_032)
    assert (facts.top1, facts.top5, facts.gflops, facts.size_mb) == (80.858, 95.434, 4.089, 97.79)


def test_weights_without_a_classifier_are_left_out() -> None:
    (facts,) = list_models("torchvision/vgg1[6]")
    assert facts.tag == "IMAGENET1K_V1"
    assert facts.weights == ("IMAGENET1K_V1",)


def test_accuracies_of_timms_weights_are_those_of_its_results_at_the_size_that_images_are_prepared_for() -> None:
    facts = facts_of("timm/resnet50.a1_in1k")  # 81.240 / 95.112 at 288 px, 80.382 / 94.598 at 224 px
    assert (facts.top1, facts.top5, facts.input_size) == (80.382, 94.598, 224)
    assert "224 px" in str(facts.top_source)
    only_larger = facts_of("timm/resnet50.tv2_in1k")
    assert (only_larger.input_size, only_larger.top1) == (176, 79.434)


def test_what_timm_does_not_publish_is_computed_and_a_size_is_marked_as_estimated() -> None:
    facts = facts_of("timm/resnet50.a1_in1k")
    assert (facts.num_params, facts.feature_width, facts.num_blocks) == (25_557_032, 2048, 17)
    assert facts.gflops == pytest.approx(4.089, abs=1e-3)  # what torchvision publishes of the same network
    assert facts.size_mb == pytest.approx(25_557_032 * 4 / 2**20, abs=0.01)
    assert facts.size_estimated
    assert not facts_of("torchvision/resnet50").size_estimated


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "vit_tiny_patch16_224.augreg_in21k", "convnextv2_atto.fcmae"])
def test_parameters_are_counted_with_the_head_of_the_weights_which_may_have_other_classes_or_none(name: str) -> None:
    facts = facts_of(f"timm/{name}")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=facts.num_classes)
    assert facts.num_classes == timm.get_pretrained_cfg(name).num_classes
    count = sum(parameter.numel() for parameter in model.parameters())
    assert facts.num_params == pytest.approx(count, rel=0.01)  # without classes timm leaves out a norm too


def test_an_architecture_without_weights_says_so() -> None:
    (facts,) = list_models("timm/densenet264d")
    assert (facts.id, facts.weights, facts.tag) == ("timm/densenet264d", (), None)
    assert "no weights" in str(facts.note)
    assert (facts.licence, facts.top1, facts.trained_on) == (None, None, None)
    assert facts.num_params == 72_736_216


def test_what_weights_were_trained_on_is_read_from_their_tag() -> None:
    assert facts_of("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k").trained_on == "in21k+in1k"
    assert facts_of("timm/resnet50.fb_swsl_ig1b_ft_in1k").trained_on == "ig1b+in1k"
    assert facts_of("torchvision/resnet50").trained_on == "in1k"


def test_families_are_the_libraries_modules() -> None:
    assert facts_of("torchvision/wide_resnet50_2").family == "resnet"
    assert facts_of("timm/deit_tiny_patch16_224").family == "deit"


@pytest.mark.parametrize(
    ("id", "licence", "must_be_accepted"),
    [
        ("timm/resnet50.a1_in1k", "apache-2.0", False),
        ("timm/convnextv2_atto.fcmae", "cc-by-nc-4.0", True),
        ("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", "swag", True),
        ("torchvision/vit_b_16.IMAGENET1K_V1", None, False),
    ],
)
def test_a_licence_that_asks_for_more_than_attribution_binds(id: str, licence: str | None, must_be_accepted: bool):
    facts = facts_of(id)
    assert (facts.licence, facts.licence_binds) == (licence, must_be_accepted)


def test_the_data_file_says_where_each_part_is_from() -> None:
    sources = file_contents()["sources"]
    assert sources["accuracy"]["file"] == "results/results-imagenet.csv"
    assert len(sources["accuracy"]["commit"]) == 40
    assert "flop_counter" in sources["architectures"]["computed"]
    assert set(sources) == set(file_contents()) - {"sources"}


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = [facts_of("torchvision/alexnet"), facts_of("timm/resnet10t")]
    monkeypatch.setattr(listing, "_assembled", lambda: iter(few))
    listing._kept.cache_clear()
    try:
        assert list(listing.all_models()) == few
        (file,) = (tmp_path / "tlray" / "catalogue").iterdir()
        whole = file.read_bytes()
        for damage in (whole[: len(whole) // 2], b"[]", b'[{"id": "x", "unknown": 1}]'):
            file.write_bytes(damage)
            listing._kept.cache_clear()
            assert list(listing.all_models()) == few
            assert file.read_bytes() == whole
    finally:
        listing._kept.cache_clear()


def test_an_id_is_looked_up_without_an_import_once_the_listing_is_kept() -> None:
    listing.all_models()
    loaded = "{'torch', 'torchvision', 'timm'} & set(sys.modules)"
    asked = "c.resolve_id('timm/resnet10t'), c.known_tags('timm', 'resnet50')[0], c.known_tags('timm', 'nope')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, tlray.catalogue as c; print({asked}, {loaded})"],
        capture_output=True,
        text=True,
        check=True,
    )
    first = timm.get_pretrained_cfg("resnet50").tag
    assert done.stdout.strip() == f"timm/resnet10t {first} () set()"


def test_a_second_start_reads_the_cache_and_imports_no_library() -> None:
    loaded = "{'torch', 'torchvision', 'timm'} & set(sys.modules)"
    code = f"import sys, tlray.catalogue as c; print(len(c.all_models()), {loaded})"
    list_models()  # makes the cache where this machine has none
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(list_models())} set()"


def test_a_library_that_is_not_installed_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "LIBRARIES", {**libraries.LIBRARIES, "timm": "no-such-distribution"})
    monkeypatch.setattr("tlray.catalogue.libraries.timm.EXTRA", "more")
    with pytest.raises(BackboneError, match=r"timm is not installed: pip install 'tlray\[more\]'"):
        resolve_id("timm/resnet10t")
    assert "timm" not in libraries.installed()


def test_the_catalogue_imports_neither_torch_nor_a_model_library() -> None:
    code = "import sys, tlray.catalogue; print({'torch', 'torchvision', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
