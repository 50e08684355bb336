"""Which linear probes may train as one batched head. No torch here: the driver of a cluster forms the groups."""

from collections.abc import Hashable

from tlray.config import TrialConfig

# What each head of a group has for itself; whatever else is in the recipe, all of them share.
OWN_FIELDS = {
    "epochs",
    "lr",
    "head_lr_mult",
    "layer_decay",  # of blocks, of which a linear probe trains none
    "weight_decay",
    "momentum",
    "schedule",
    "warmup_epochs",
    "label_smoothing",
    "gradient_clip",
    "patience",
}


def can_fuse(trial: TrialConfig) -> bool:
    """Whether the trial may join a group."""
    return trial.strategy.strategy == "linear_probe" and not trial.is_baseline


def fusion_key(trial: TrialConfig) -> Hashable:
    """Equal for trials that can train together."""
    shared = trial.recipe.model_dump_json(exclude=OWN_FIELDS)
    return trial.backbone.model_dump_json(), trial.seed, shared
