"""pytorchcv's models: facts from its own tables, forward, blocks, cuts, and its weights files."""

import hashlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorchcv", reason="needs the extra pytorchcv")

from tests.unit.library_models import FACTS, assert_splits, num_params, on_meta, untrained
from tlray.catalogue.libraries import pytorchcv

# name -> qualified name of its classifier, blocks
NAMED = {
    "alexnet": ("output.fc3", 7),
    "bninception": ("output", 11),
    "inceptionv4": ("output.fc", 17),
    "nasnet_4a1056": ("output.fc", 17),
    "preresnet50": ("output", 17),
    "preresnet101": ("output", 34),
    "preresnet152": ("output", 51),
    "vgg16": ("output.fc3", 15),
}
# One of each kind of container and head: 1x1 convolutions as classifiers, two values between blocks.
OTHER_KINDS = ["dpn68", "squeezenet_v1_1", "espnetv2_wd2", "selecsls42b", "resnetd50b"]
OWN_SIZE_ONLY = {"dpn68", "squeezenet_v1_1"}  # a pooling window in their classifier is that of 224 pixels
NOT_TRACEABLE = {"condensenet74_c4_g4", "condensenet74_c8_g8"}  # their forward makes an autograd variable by hand


def test_every_model_has_facts_of_its_own_and_a_preprocessing() -> None:
    names = pytorchcv.names()
    assert len(names) > 350
    for name in names:
        facts = pytorchcv.facts(name, None)
        assert facts.keys() <= FACTS
        assert facts["num_params"] > 0
        assert ("top1" in facts) == bool(facts["weights"])
        assert facts["input_size"] == pytorchcv.preprocessing(name, None).input_size[0]


def test_the_facts_are_those_that_the_package_publishes() -> None:
    assert pytorchcv.facts("bninception", None) == {
        "id": "pytorchcv/bninception",
        "library": "pytorchcv",
        "name": "bninception",
        "tag": "in1k",
        "weights": ("in1k",),
        "family": "bninception",
        "input_size": 224,
        "num_params": 11_295_240,
        "gflops": 2.048,
        "feature_width": 1024,
        "size_mb": 43.1,
        "top1": 74.63,
        "top5": 92.26,
        "top_source": "pytorchcv 0.0.74, README (100 - error)",
        "licence": "mit",
        "licence_binds": False,
        "trained_on": "ImageNet-1k",
        "extra": "pytorchcv",
    }
    alexnet = pytorchcv.facts("alexnet", None)
    assert (alexnet["top1"], alexnet["top5"], alexnet["num_params"]) == (61.50, 83.36, 62_378_344)
    assert pytorchcv.preprocessing("inceptionv4", None).resize == 342  # 299 of 0.875
    assert pytorchcv.facts("mobilenetv3_large_wd2", None)["family"] == "mobilenet"


def test_what_is_known_without_the_package_is_what_the_package_says() -> None:
    for name, row in pytorchcv.ROWS.items():
        row_of_package, accuracies = pytorchcv._row(name), pytorchcv._accuracies()
        said = {"num_params": int(row_of_package["net_weights"])}
        said |= accuracies[name, row_of_package["checksum"][:8]]
        assert {key: value for key, value in row.items() if key != "feature_width"} == said


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_has_its_parameters_and_takes_images_of_its_size(name: str) -> None:
    model, logits = on_meta(pytorchcv, name)
    assert tuple(logits.shape) == (2, 1000)
    facts = pytorchcv.facts(name, None)
    assert num_params(model) == facts["num_params"]
    head = model.get_submodule(NAMED[name][0])
    assert head.in_features == facts.get("feature_width", head.in_features)


@pytest.mark.parametrize("name", ["bninception", "preresnet50"])
def test_a_named_model_splits_between_its_blocks(name: str) -> None:
    backbone = untrained(pytorchcv, name, size=64)
    assert (*backbone.head, len(backbone.blocks)) == NAMED[name]
    assert backbone.unused == ()
    assert_splits(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(NAMED.keys() - {"bninception", "preresnet50", "alexnet", "vgg16"}), *OTHER_KINDS])
def test_another_model_splits_between_its_blocks(name: str) -> None:
    backbone = untrained(pytorchcv, name, size=None if name in OWN_SIZE_ONLY else 96)
    assert len(backbone.blocks) > 5
    assert_splits(backbone)


@pytest.mark.slow
def test_a_network_with_hidden_linear_layers_splits_at_its_own_size() -> None:
    assert_splits(untrained(pytorchcv, "alexnet"))


@pytest.mark.slow
@pytest.mark.parametrize("name", pytorchcv.names())
def test_every_model_is_built_and_traced(name: str) -> None:
    from tlray.errors import BackboneError
    from tlray.models.backbone import _find_head
    from tlray.models.blocks import trace_model

    model, logits = on_meta(pytorchcv, name, num_classes=7)
    assert tuple(logits.shape) == (2, 7)
    (head,) = _find_head(model, name)
    assert model.get_submodule(head).weight.shape[0] == 7
    try:
        assert trace_model(model, (head,)).blocks
    except BackboneError:
        assert name in NOT_TRACEABLE


def test_published_weights_load_with_their_head_or_with_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file as the package would have downloaded it into torch's folder, its checksum in the package's table."""
    from pytorchcv.models.common import model_store

    name = "squeezenet_v1_1"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trained = untrained(pytorchcv, name, num_classes=1000).model
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(trained.state_dict(), folder / "weights.pth")
    checksum = hashlib.sha1((folder / "weights.pth").read_bytes()).hexdigest()
    (folder / "weights.pth").rename(folder / f"{name}-0001-{checksum[:8]}.pth")
    monkeypatch.setattr(model_store, "get_model_metainfo", lambda model_name: (1, "0001", checksum, "v0"))

    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = trained(images)
        torch.testing.assert_close(
            pytorchcv.construct(name, None, "pretrained", 224, {}, 1000).eval()(images), expected, rtol=0, atol=0
        )
        other = pytorchcv.construct(name, None, "pretrained", 224, {}, 3).eval()
        assert other(images).shape == (2, 3)
        features = trained.features(images)
        torch.testing.assert_close(other.features(images), features, rtol=0, atol=0)


def test_a_failed_download_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorchcv.models.common import model_store

    def fail(url: str, **_: object) -> None:
        raise RuntimeError(f"Failed downloading url {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(model_store, "_download", fail)
    with pytest.raises(OSError, match="Failed downloading url"):
        pytorchcv.construct("squeezenet_v1_1", None, "pretrained", 224, {}, 3)


def test_any_input_size_gives_one_row_of_logits() -> None:
    """The package itself pools with a window for its own size and fails, or gives several rows, on others."""
    model = pytorchcv.construct("resnet10", None, "none", 96, {}, 3).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 96, 96)).shape == (2, 3)
        assert model(torch.randn(2, 3, 288, 288)).shape == (2, 3)
