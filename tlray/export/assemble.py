"""The network that a bundle is, out of the trained networks in it: the same when it is written and when it is loaded.

model = assemble(networks, config)          # one network, or an ensemble's members in their order
tensors = state_of(networks)                # what model.safetensors holds
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tlray.export.files import BundleConfig
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.combined import Ensemble, Flipped, Tempered


def assemble(networks: Sequence[nn.Module], config: BundleConfig) -> nn.Module:
    """In evaluation mode: images (B, 3, H, W) float32, normalised as the bundle says -> logits (B, C)."""
    model = networks[0]
    if config.members:
        preprocessing = [member.image_preprocessing for member in config.members]
        weights = [member.weight for member in config.members]
        calibrated = [
            Tempered(network, member.temperature) for network, member in zip(networks, config.members, strict=True)
        ]
        model = Ensemble(calibrated, preprocessing, config.image_preprocessing, weights)
    if config.tta == "flip":
        model = Flipped(model)
    if config.temperature != 1:
        model = Tempered(model, config.temperature)
    return model.eval()


def state_of(networks: Sequence[nn.Module], config: BundleConfig) -> dict[str, torch.Tensor]:
    """All weights; those of an ensemble's members under `members.<place>.`."""
    # clone: a state dict may hold the same tensor under two names, which the format of the file refuses
    return {
        prefix + key: tensor.detach().clone().contiguous()
        for prefix, network in zip(_prefixes(config), networks, strict=True)
        for key, tensor in network.state_dict().items()
    }


def rebuild(config: BundleConfig, tensors: Mapping[str, torch.Tensor]) -> list[Backbone]:
    """The trained networks of a bundle, from what `state_of` gave."""
    backbones = []
    for prefix, built_from in zip(_prefixes(config), config.backbones, strict=True):
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        backbone = build_backbone(built_from, len(config.classes))
        if state.keys() != backbone.model.state_dict().keys():  # of a version that kept the library's classifier
            backbone = build_backbone(built_from, len(config.classes), as_published=True)
        backbone.model.load_state_dict(state, strict=True)
        backbone.model.eval()
        backbones.append(backbone)
    return backbones


def _prefixes(config: BundleConfig) -> list[str]:
    return [f"members.{place}." for place in range(len(config.members))] or [""]
