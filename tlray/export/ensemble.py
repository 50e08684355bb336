"""config.json of an ensemble's bundle, and how near its graph is to its members as they were trained.

config = ensemble_config(members, classes, temperature=1.2)
uri = write_bundle([member.backbone.model for member in members], config, samples, facts, destination)
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.transforms import normalise
from tlray.export.assemble import assemble
from tlray.export.bundle import bundled_backbone, shared_fields
from tlray.export.files import BundleConfig, MemberConfig
from tlray.models.backbone import Backbone
from tlray.models.combined import common_preprocessing


@dataclass(frozen=True)
class TrainedMember:
    """One trained network of an ensemble, and what its bundle says of it."""

    backbone: Backbone  # trained, on the CPU, in evaluation mode
    built_from: BackboneConfig
    strategy: str
    params: Mapping[str, Any]
    weight: float
    temperature: float
    trial_id: str
    checkpoint_sha256: str


def ensemble_config(members: Sequence[TrainedMember], classes: Sequence[str], temperature: float) -> BundleConfig:
    """TlrayError where the members' inputs cannot be made from one image."""
    common = common_preprocessing([member.backbone.preprocessing for member in members])
    described = [_member_config(member) for member in members]
    return BundleConfig(
        **shared_fields(classes, common),
        backbone=None,
        initial_weights=", ".join(dict.fromkeys(member.initial_weights for member in described)),
        strategy=", ".join(dict.fromkeys(member.strategy for member in described)),
        params={},
        checkpoint_sha256=identity([(member.checkpoint_sha256, member.weight) for member in members]),
        members=tuple(described),
        temperature=temperature,
    )


def identity(members: Sequence[tuple[str, float]]) -> str:
    """What tells one ensemble from another, as a checkpoint's hash would; members: (hash of a checkpoint, weight)."""
    return hashlib.sha256(json.dumps([list(member) for member in members]).encode()).hexdigest()


@torch.no_grad()
def view_difference(
    members: Sequence[TrainedMember], config: BundleConfig, samples: Callable[[Preprocessing], torch.Tensor]
) -> float:
    """How far the graph's probabilities are from the mean of the members with their own preprocessing, at most.

    The graph makes the members' inputs out of one image: where they differ in the resize, it resizes twice. `samples`
    gives some images (B, 3, H, W) uint8 after `eval_transform`.
    """
    expected = torch.zeros(())
    for member in members:
        own = member.backbone.preprocessing
        logits = member.backbone.model(normalise(samples(own), own))
        expected = expected + member.weight * torch.softmax(logits / member.temperature, dim=1)
    plain = config.model_copy(update={"temperature": 1.0, "tta": "none"})
    common = config.image_preprocessing
    found = assemble([member.backbone.model for member in members], plain)(normalise(samples(common), common))
    return float((found.exp() - expected).abs().max())


def _member_config(member: TrainedMember) -> MemberConfig:
    own = member.backbone.preprocessing
    return MemberConfig(
        backbone=bundled_backbone(member.backbone.model, member.built_from, own),
        initial_weights=member.built_from.weights,
        strategy=member.strategy,
        params=dict(member.params),
        preprocessing=own.to_dict(),
        weight=member.weight,
        temperature=member.temperature,
        trial_id=member.trial_id,
        checkpoint_sha256=member.checkpoint_sha256,
    )
