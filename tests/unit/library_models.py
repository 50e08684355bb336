"""Models of the optional libraries: built with random weights, traced, and split as a sweep would."""

from types import ModuleType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.families import images_for, randomise_norms
from tlray.models.backbone import Backbone, find_head
from tlray.models.blocks import trace_model
from tlray.models.split import find_cut, frozen_prefix, trainable_suffix

# fields of ModelFacts that a library may state
FACTS = {
    *("id", "library", "name", "tag", "weights", "family", "input_size", "num_params", "gflops", "size_mb"),
    *("feature_width", "top1", "top5", "top_source", "licence", "licence_binds", "trained_on", "extra", "note"),
}


def untrained(library: ModuleType, name: str, size: int | None = None, num_classes: int = 3) -> Backbone:
    """A library's backbone with random weights and norms, in evaluation mode; `size` if not its own."""
    preprocessing = library.preprocessing(name, None)
    if size is not None:
        preprocessing = preprocessing.with_input_size(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = library.construct(name, None, "none", preprocessing.input_size[0], {}, num_classes).eval()
    randomise_norms(model)
    keep_values_alive(model)
    head = find_head(model, name)
    trace = trace_model(model, head)
    backbone_id = f"{library.LIBRARY}/{name}"
    return Backbone(backbone_id, model, head, trace.blocks, None, preprocessing, "none", trace=trace)


def keep_values_alive(model: torch.nn.Module) -> None:
    """torch's own initial weights let values shrink with every layer until no image is told from another."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draw)


def on_meta(library: ModuleType, name: str, num_classes: int = 1000) -> tuple[Any, torch.Tensor]:
    """The model, and its logits for two images of its own size, without memory or arithmetic."""
    height, width = library.preprocessing(name, None).input_size
    with torch.device("meta"):
        model = library.construct(name, None, "none", height, {}, num_classes).eval()
        return model, model(torch.empty(2, 3, height, width))


def giga_multiply_adds(model: Any, size: int) -> float:
    """Of one square image, counted by torch; `model` lies on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def num_params(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_splits(backbone: Backbone, tolerance: float = 0.0) -> None:
    """Frozen and trainable part together give the whole model's logits, at three cuts; other images give others."""
    images = images_for(backbone, count=2)
    with torch.no_grad():
        expected = backbone.model(images)
    assert float((expected[0] - expected[1]).abs().max() / expected.abs().max()) > 1e-3, (
        "its logits do not depend on the image"
    )
    count = len(backbone.blocks)
    cuts = [find_cut(backbone, number) for number in (1, count // 2, count)]
    for cut, values in zip(cuts, frozen_prefix(backbone, cuts)(images), strict=True):
        with torch.no_grad():
            logits = trainable_suffix(backbone, cut.num_frozen)(*values)
        assert float((logits - expected).abs().max()) <= tolerance, cut
