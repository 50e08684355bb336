"""open_clip's visual towers: names, facts, forward, blocks, cuts, and its weights files."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("open_clip", reason="needs the extra open_clip")

from tests.unit.library_models import FACTS, assert_splits, num_params, on_meta, untrained
from tlray.catalogue.libraries import open_clip
from tlray.errors import BackboneError

# Attention over a transposed view and over its contiguous copy takes other kernels.
TOLERANCE = 1e-5
SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 5, "vocab_size": 11, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def small_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B-32 and coca_ViT-B-32 shrunk to three layers, under their own names."""
    import open_clip as package

    configs = package.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-B-32", SMALL)
    coca = SMALL["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    monkeypatch.setitem(configs, "coca_ViT-B-32", configs["coca_ViT-B-32"] | {"embed_dim": 16, "vision_cfg": coca})


def test_the_towers_are_open_clips_own_and_each_has_weights() -> None:
    names = open_clip.names()
    assert {"coca_ViT-B-32", "coca_ViT-L-14", "ViT-B-32", "ViT-L-14", "RN50"} <= set(names)
    assert not any(part in name for name in names for part in ("convnext", "SigLIP", "quickgelu", "roberta"))
    assert all(open_clip.tags(name) for name in names)
    assert open_clip.tags("coca_ViT-L-14")[0] == "laion2b_s13b_b90k"


def test_the_facts_tell_what_binds_and_where_the_accuracy_is_from() -> None:
    coca = open_clip.facts("coca_ViT-L-14", None)
    assert coca.keys() <= FACTS
    assert (coca["top1"], coca["licence"], coca["licence_binds"], coca["feature_width"]) == (75.61, "mit", False, 768)
    assert "zero-shot" in coca["top_source"]
    assert open_clip.facts("coca_ViT-L-14", "mscoco_finetuned_laion2b_s13b_b90k")["top1"] is None
    assert open_clip.facts("ViT-B-16", "metaclip_400m")["licence_binds"]
    assert open_clip.facts("ViT-B-16", "openai")["licence"] == "mit"


def test_the_preprocessing_belongs_to_the_tag() -> None:
    openai = open_clip.preprocessing("ViT-L-14", "openai")
    laion = open_clip.preprocessing("ViT-L-14", "laion2b_s32b_b82k")
    assert openai.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert laion.mean == (0.5, 0.5, 0.5)
    assert (openai.interpolation, openai.resize, openai.crop_mode) == ("bicubic", 224, "center")
    assert open_clip.preprocessing("ViT-L-14-CLIPA", None).crop_mode == "squash"


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14", "ViT-B-32", "RN50"])
def test_a_tower_has_its_parameters_and_takes_images_of_its_size(name: str) -> None:
    model, logits = on_meta(open_clip, name)
    assert tuple(logits.shape) == (2, 1000)
    facts = open_clip.facts(name, None)
    assert num_params(model.visual) == facts["num_params"]
    assert model.fc.in_features == facts["feature_width"]


@pytest.mark.usefixtures("small_towers")
@pytest.mark.parametrize(("name", "num_blocks"), [("coca_ViT-B-32", 5), ("ViT-B-32", 4)])
def test_a_tower_splits_between_its_blocks(name: str, num_blocks: int) -> None:
    backbone = untrained(open_clip, name, size=32)
    assert backbone.head == ("fc",)
    assert len(backbone.blocks) == num_blocks  # patches, three layers, attention pooling
    assert backbone.unused == ()
    assert_splits(backbone, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14", "RN50"])
def test_a_tower_of_full_size_splits_between_its_blocks(name: str) -> None:
    assert_splits(untrained(open_clip, name), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", open_clip.names())
def test_every_tower_is_built_and_traced(name: str) -> None:
    from tlray.models.blocks import trace_model

    model, logits = on_meta(open_clip, name, num_classes=7)
    assert tuple(logits.shape) == (2, 7)
    trace = trace_model(model, ("fc",))
    assert len(trace.blocks) > 10
    assert trace.unused == ()


@pytest.mark.usefixtures("small_towers")
@pytest.mark.parametrize("tag", ["openai", "laion2b_e16"])
def test_published_weights_give_the_embeddings_of_the_whole_model(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two tags one was trained with the approximation of GELU and one with GELU itself."""
    import open_clip as package

    quick_gelu = package.get_pretrained_cfg("ViT-B-32", tag).get("quick_gelu", False)
    assert quick_gelu == (tag == "openai")
    torch.manual_seed(0)
    whole = package.CLIP(**SMALL, quick_gelu=quick_gelu).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(package.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))
    images = torch.randn(2, 3, 32, 32)
    model = open_clip.construct("ViT-B-32", tag, "pretrained", 32, {}, 3).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.visual(images), whole.encode_image(images))
        assert model(images).shape == (2, 3)


@pytest.mark.usefixtures("small_towers")
def test_a_failed_download_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip as package

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(package.factory, "download_pretrained", fail)
    with pytest.raises(OSError, match="no route to host"):
        open_clip.construct("ViT-B-32", None, "pretrained", 32, {}, 3)


def test_a_tower_has_no_labels() -> None:
    with pytest.raises(BackboneError, match="no labels are known"):
        open_clip.labels("coca_ViT-B-32", None)
