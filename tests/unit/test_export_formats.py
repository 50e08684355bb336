"""export/formats.py: ONNX and torch.export compute what the model computes, at any batch size, or nothing is published.

Run: python -m pytest tests/unit/test_export_formats.py
"""

import logging
import re

import onnxruntime
import pytest
import timm
import torch
from small_bundle import SmallBundle, small_bundle
from torch import nn

from tlray.errors import TlrayError
from tlray.export import formats
from tlray.export.formats import check_formats, onnx_logits, program_logits, write_formats


@pytest.fixture(scope="module")
def bundle(image_folder) -> SmallBundle:
    return small_bundle(image_folder)


def some_images(count: int, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("batch_size", [1, 5])
def test_onnx_and_program_give_the_models_logits_at_batch_sizes_they_were_not_traced_with(bundle, batch_size):
    images = some_images(batch_size)
    with torch.no_grad():
        expected = bundle.model(images)
    allowed = max(1e-4, 1e-4 * expected.abs().max().item())
    assert torch.allclose(onnx_logits(bundle.folder / "model.onnx")(images), expected, rtol=0, atol=allowed)
    assert torch.allclose(program_logits(bundle.folder / "model.pt2")(images), expected, rtol=0, atol=allowed)


def test_the_onnx_file_names_its_input_output_and_batch_dimension(bundle):
    session = onnxruntime.InferenceSession(bundle.folder / "model.onnx")
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, 64, 64])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3])


@pytest.mark.parametrize("format_name", ["model.safetensors", "model.onnx", "model.pt2"])
def test_a_format_that_computes_something_else_is_refused(bundle, monkeypatch, format_name):
    def wrong(images: torch.Tensor) -> torch.Tensor:
        return bundle.model(images) * 1.001

    if format_name != "model.safetensors":
        monkeypatch.setattr(
            formats, "onnx_logits" if format_name == "model.onnx" else "program_logits", lambda _: wrong
        )
    rebuilt = wrong if format_name == "model.safetensors" else bundle.model
    with pytest.raises(TlrayError, match=rf"logits are off in {re.escape(format_name)} by .*nothing was published"):
        check_formats(bundle.model, some_images(3), bundle.folder, rebuilt)


@pytest.mark.parametrize("largest", [formats.LARGEST_ONNX_BYTES, 0])
def test_one_sample_is_enough_and_the_exporters_keep_quiet(tmp_path, capfd, caplog, monkeypatch, largest):
    monkeypatch.setattr(formats, "LARGEST_ONNX_BYTES", largest)  # 0: weights beside the ONNX file, as of large models
    model = tiny_network()
    with caplog.at_level(logging.WARNING):
        write_formats(model, some_images(1, 16), tmp_path, "tiny")
    assert (tmp_path / "model.onnx.data").exists() == (largest == 0)
    agreement = check_formats(model, some_images(4, 16), tmp_path, model)
    assert agreement.num_images == 4
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_masked_fused_attention_is_exported_and_left_as_it_was(tmp_path):
    model = timm.create_model(
        "beit_base_patch16_224", num_classes=2, img_size=32, depth=1, embed_dim=32, num_heads=2, pretrained=False
    ).eval()
    write_formats(model, some_images(2, 32), tmp_path, "beit")
    check_formats(model, some_images(3, 32), tmp_path, model)
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))


def test_a_model_that_cannot_be_exported_is_an_error_that_names_it(tmp_path):
    class DependsOnPixels(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.mean(dim=(2, 3))
            return pixels if pixels.sum() > 0 else -pixels

    with pytest.raises(TlrayError, match=r"odd/model cannot be exported to model\.pt2 and model\.onnx: "):
        write_formats(DependsOnPixels().eval(), some_images(2, 8), tmp_path, "odd/model")
