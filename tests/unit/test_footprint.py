"""What a trial needs: against numbers worked out by hand and against what autograd really keeps."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from tlray.config import BackboneConfig, Recipe, StrategyConfig, TrialConfig
from tlray.models.backbone import Backbone, build_backbone
from tlray.planning.footprint import activation_bytes_per_image, trial_footprint

NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(NETWORK, num_classes=10)


def make_trial(strategy: str = "full", **recipe: object) -> TrialConfig:
    return TrialConfig(
        trial_id="t",
        backbone=NETWORK,
        strategy=StrategyConfig.model_validate({"strategy": strategy}),
        recipe=Recipe.model_validate(recipe),
        seed=0,
    )


def kept_by_autograd(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes of the storages that autograd saves in a real forward pass, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_of_a_small_network_are_what_one_counts_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))
    kept = 12 + 20  # the first layer's input; ReLU's output, which is the last layer's input
    widest = 20 + 20  # input and output of ReLU
    assert activation_bytes_per_image(model, (2, 2)) == 4 * (kept + widest)


@pytest.mark.parametrize("make", [resnet18, mobilenet_v3_small])
def test_activations_are_what_autograd_really_keeps_and_the_widest_layer(make: type[nn.Module]) -> None:
    model = make()
    real = kept_by_autograd(model, torch.randn(2, 3, 64, 64)) / 2
    estimated = activation_bytes_per_image(model, (64, 64))
    assert real < estimated < 1.5 * real


def test_a_frozen_prefix_keeps_no_activations() -> None:
    model = resnet18()
    everything = activation_bytes_per_image(model, (64, 64))
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    kept_for_the_head = 4 * 512
    widest = everything - kept_by_autograd(resnet18(), torch.randn(2, 3, 64, 64)) // 2
    assert activation_bytes_per_image(model, (64, 64)) == pytest.approx(kept_for_the_head + widest, rel=0.01)


def test_the_estimate_leaves_the_model_as_it_was(backbone: Backbone) -> None:
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    trial_footprint(make_trial(), backbone)
    after = backbone.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_gradients_and_optimizer_follow_from_the_parameters(backbone: Backbone) -> None:
    num_params = sum(p.numel() for p in backbone.model.parameters())
    adamw = trial_footprint(make_trial(optimizer="adamw"), backbone)
    assert adamw.gradients == 4 * num_params
    assert adamw.weights >= 4 * num_params
    assert adamw.optimizer == 2 * adamw.gradients
    assert adamw.disk_bytes == 3 * 3 * adamw.gradients
    assert trial_footprint(make_trial(optimizer="sgd"), backbone).optimizer == adamw.gradients
    assert trial_footprint(make_trial(optimizer="sgd", momentum=0), backbone).optimizer == 0


def test_a_linear_probe_needs_gradients_for_its_head_only(backbone: Backbone) -> None:
    head = dict(backbone.model.named_modules())[backbone.head[0]]
    footprint = trial_footprint(make_trial("linear_probe"), backbone)
    assert footprint.gradients == 4 * sum(p.numel() for p in head.parameters())
    assert footprint.memory_bytes < trial_footprint(make_trial("full"), backbone).memory_bytes


def test_activations_grow_with_a_workers_share_of_the_batch_and_halve_in_half_precision(backbone: Backbone) -> None:
    one = trial_footprint(make_trial(batch_size=32), backbone)
    assert trial_footprint(make_trial(batch_size=64), backbone).activations == 2 * one.activations
    assert trial_footprint(make_trial(batch_size=32), backbone, num_workers=2).activations == one.activations // 2
    half = trial_footprint(make_trial(batch_size=32, precision="bfloat16"), backbone)
    assert half.activations == pytest.approx(one.activations / 2, rel=0.01)
