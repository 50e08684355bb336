"""Every cut against the whole model: the same logits, the same gradients, and nothing written where it must not be."""

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.families import EACH_FAMILY, built, images_for
from tlray.config import BackboneConfig
from tlray.models import liveness
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze, train_mode
from tlray.models.split import SplitError, find_cut, frozen_prefix, trainable_suffix

torch.set_num_threads(1)

shared_build = lru_cache(maxsize=1)(built)  # the tests of one family follow each other


def some_cuts(backbone: Backbone) -> list[int]:
    """The first, the last, and two in between."""
    count = len(backbone.blocks)
    return sorted({1, max(1, count // 3), max(1, 2 * count // 3), count})


def restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(state[key])
    model.zero_grad(set_to_none=True)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_suffix_after_prefix_is_bit_for_bit_the_model(family: str) -> None:
    backbone = shared_build(family)
    images = images_for(backbone)
    with torch.no_grad():
        expected = backbone.model(images)
    cuts = [find_cut(backbone, num_frozen) for num_frozen in range(1, len(backbone.blocks) + 1)]
    outputs = frozen_prefix(backbone, cuts)(images)
    for cut, values in zip(cuts, outputs, strict=True):
        assert tuple(tuple(value.shape[1:]) for value in values) == cut.shapes
        assert sum(value[0].numel() for value in values) == cut.num_elements
        if cut.num_frozen in some_cuts(backbone):
            assert torch.equal(trainable_suffix(backbone, cut.num_frozen)(*values), expected)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_training_step_on_the_suffix_is_that_of_the_partially_frozen_model(family: str) -> None:
    backbone = shared_build(family)
    model, before = backbone.model, snapshot(backbone.model)
    images, labels = images_for(backbone, count=4), torch.tensor([0, 1, 2, 0])

    def step(network: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, dict, dict]:
        restore(model, before)
        torch.manual_seed(5)
        logits = network(*inputs)
        nn.functional.cross_entropy(logits, labels).backward()
        return logits, {name: p.grad for name, p in model.named_parameters()}, snapshot(model)

    for num_frozen in some_cuts(backbone)[1:]:
        (values,) = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])(images)
        originals = [value.clone() for value in values]
        trainable_blocks = len(backbone.blocks) - num_frozen
        freeze(backbone, trainable_blocks)
        train_mode(backbone, trainable_blocks, freeze_bn=True)
        logits, gradients, state = step(model, images)
        suffix = trainable_suffix(backbone, num_frozen)
        assert {id(p) for p in suffix.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
        suffix_logits, suffix_gradients, suffix_state = step(suffix, *values)
        assert torch.equal(logits, suffix_logits)
        for name, gradient in gradients.items():
            assert (gradient is None) == (suffix_gradients[name] is None), name
            assert gradient is None or torch.equal(gradient, suffix_gradients[name]), name
        assert all(torch.equal(state[key], suffix_state[key]) for key in state)
        assert all(torch.equal(value, original) for value, original in zip(values, originals, strict=True))
        restore(model, before)
    model.eval()


# Numbers an image at the default size, half the blocks frozen and all: the width of the features in front of the head,
# and the resolution and channels of the stage in the papers' tables.
NUM_ELEMENTS = {
    "torchvision/resnet50": (9, 1024 * 14 * 14, 2048),
    "torchvision/alexnet": (4, 256 * 13 * 13, 4096),
    "torchvision/vgg16": (8, 512 * 28 * 28, 4096),
    "torchvision/densenet121": (31, 112_896, 1024),
    "torchvision/mobilenet_v3_small": (7, 40 * 14 * 14, 1024),
    "timm/tf_efficientnet_b0": (9, 80 * 14 * 14, 1280),
    "torchvision/googlenet": (6, 512 * 14 * 14, 1024),
    "torchvision/inception_v3": (8, 288 * 35 * 35, 2048),
    "torchvision/vit_b_16": (7, 197 * 768, 768),
    "timm/deit_base_distilled_patch16_224": (7, 198 * 768, 2 * 768),
    "timm/nasnetalarge": (12, 1_778_112, 4032),
}


@pytest.mark.parametrize("id", NUM_ELEMENTS)
def test_a_cut_lies_where_the_fewest_numbers_cross(id: str) -> None:
    half, at_half, at_all = NUM_ELEMENTS[id]
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(id=id, weights="none"), 3)
        assert find_cut(backbone, half).num_elements == at_half
        assert find_cut(backbone, len(backbone.blocks)).num_elements == at_all


def test_dense_blocks_hand_over_the_outputs_of_all_their_layers() -> None:
    backbone = built("torchvision/densenet121")
    assert find_cut(backbone, 4).shapes == ((64, 16, 16), (32, 16, 16), (32, 16, 16), (32, 16, 16))


def test_many_cuts_of_one_backbone_are_found_with_one_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = []
    recorded = liveness._recorded
    monkeypatch.setattr(liveness, "_recorded", lambda *given: recordings.append(given) or recorded(*given))
    backbone = built("timm/test_vit")
    cuts = [find_cut(backbone, num_frozen) for num_frozen in range(1, 8)]
    frozen_prefix(backbone, cuts)
    trainable_suffix(backbone, 3)
    assert len(recordings) == 1


def test_nothing_behind_the_last_cut_is_computed() -> None:
    backbone = built("torchvision/resnet18")
    prefix = frozen_prefix(backbone, [find_cut(backbone, 3), find_cut(backbone, 1), find_cut(backbone, 5)])
    called: list[str] = []
    for name, module in backbone.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    outputs = prefix(images_for(backbone))
    assert [values[0].shape[1] for values in outputs] == [64, 64, 128]
    blocks = [name for name in called if name in {block.name for block in backbone.blocks}]
    assert blocks == [block.name for block in backbone.blocks[:5]]


@pytest.mark.parametrize("id", ["torchvision/efficientnet_b0", "torchvision/densenet121"])
def test_a_prefix_is_in_evaluation_mode_and_without_gradients_whatever_the_model_is_in(id: str) -> None:
    backbone = built(id)
    images, before = images_for(backbone), snapshot(backbone.model)
    prefix = frozen_prefix(backbone, [find_cut(backbone, len(backbone.blocks))])
    (expected,) = prefix(images)
    backbone.model.train()
    prefix.train()
    modes = {name: module.training for name, module in backbone.model.named_modules()}
    (values,) = prefix(images)
    assert torch.equal(values[0], expected[0])
    assert not values[0].requires_grad
    assert {name: module.training for name, module in backbone.model.named_modules()} == modes
    assert all(modes.values())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_deep_copy_of_a_prefix_is_independent_of_the_model() -> None:
    backbone = built("torchvision/resnet18")
    prefix = frozen_prefix(backbone, [find_cut(backbone, 4)])
    twin, images = copy.deepcopy(prefix), images_for(backbone)
    ((expected,),) = prefix(images)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.zero_()
    assert torch.equal(twin(images)[0][0], expected)
    assert not torch.equal(prefix(images)[0][0], expected)


def test_dropout_that_the_forward_calls_as_a_function_follows_the_models_mode() -> None:
    backbone = built("timm/tf_efficientnet_b0")
    suffix = trainable_suffix(backbone, len(backbone.blocks))
    features = torch.randn(4, *find_cut(backbone, len(backbone.blocks)).shapes[0])
    expected = suffix(features)
    assert torch.equal(expected, suffix(features))
    backbone.model.train()
    assert not torch.equal(suffix(features), suffix(features))
    suffix.eval()
    assert torch.equal(suffix(features), expected)
    assert not backbone.model.training


def test_wrong_numbers_of_blocks_untraced_models_and_foreign_cuts_are_refused() -> None:
    backbone = built("timm/test_vit")
    for num_frozen in (0, 8):
        with pytest.raises(SplitError, match=f"timm/test_vit has 7 blocks; {num_frozen} of them cannot be a prefix"):
            find_cut(backbone, num_frozen)
    with pytest.raises(SplitError, match="timm/test_vit cannot be split: it branches"):
        find_cut(replace(backbone, trace=None, blocks_error="it branches"), 1)
    with pytest.raises(SplitError, match="timm/test_vit has no cut at"):
        frozen_prefix(backbone, [find_cut(built("torchvision/resnet18"), 5)])


def test_a_suffix_trains_under_ddp_and_with_synchronised_norms(tmp_path: Path) -> None:
    backbone = built("torchvision/resnet18")
    images = images_for(backbone, count=4)
    (values,) = frozen_prefix(backbone, [find_cut(backbone, 6)])(images)
    suffix = trainable_suffix(backbone, 6)
    freeze(backbone, 3)
    train_mode(backbone, 3, freeze_bn=True)
    suffix(*values).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in suffix.named_parameters()}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        suffix.zero_grad(set_to_none=True)
        nn.parallel.DistributedDataParallel(suffix)(*values).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in suffix.named_parameters())
    backbone.model.eval()
    plain = suffix(*values)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(suffix)
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    torch.testing.assert_close(converted(*values), plain)
