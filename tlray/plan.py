"""What a run will do, before it does it: images, trials, epochs, passes over the images. `tlray plan` prints it."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from tlray.backbone import Backbone, build_backbone
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.freeze import freeze
from tlray.training.loop import thaw_plan


class PlannedTrial(BaseModel):
    """One trial as planned; `image_passes` counts every forward of an image, training and validation."""

    model_config = ConfigDict(frozen=True)

    trial_id: str
    backbone: str
    weights: str
    strategy: str
    params: dict[str, Any]
    epochs: int
    num_params: int
    num_trainable_params: int
    num_blocks: int
    trainable_blocks: int  # at most, over the epochs
    input_size: tuple[int, int]  # height, width
    image_passes: int


class Plan(BaseModel):
    """The whole run; ASHA and `patience` can only make it shorter."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_classes: int
    num_images: dict[str, int]  # by split
    num_bad_images: int
    trials: tuple[PlannedTrial, ...]
    total_epochs: int
    total_image_passes: int


def make_plan(config: RunConfig, manifest: Manifest, trials: Sequence[TrialConfig]) -> Plan:
    """Builds every backbone once with its weights and tries every strategy on it, so that a mistake shows here."""
    num_images = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    planned: dict[str, PlannedTrial] = {}
    for config_key in dict.fromkeys(trial.backbone.model_dump_json() for trial in trials):
        backbone = build_backbone(BackboneConfig.model_validate_json(config_key), len(manifest.classes))
        for trial in trials:
            if trial.backbone.model_dump_json() == config_key:
                planned[trial.trial_id] = _planned(trial, backbone, num_images)
    return Plan(
        name=config.name,
        num_classes=len(manifest.classes),
        num_images=num_images,
        num_bad_images=len(manifest.bad),
        trials=tuple(planned[trial.trial_id] for trial in trials),
        total_epochs=sum(trial.epochs for trial in planned.values()),
        total_image_passes=sum(trial.image_passes for trial in planned.values()),
    )


def _planned(trial: TrialConfig, backbone: Backbone, num_images: dict[str, int]) -> PlannedTrial:
    most = thaw_plan(backbone, trial).most
    freeze(backbone, most)
    parameters = list(backbone.model.parameters())
    return PlannedTrial(
        trial_id=trial.trial_id,
        backbone=trial.backbone.id,
        weights=trial.backbone.weights,
        strategy=trial.strategy.label,
        params=trial.recipe.model_dump(),
        epochs=trial.recipe.epochs,
        num_params=sum(p.numel() for p in parameters),
        num_trainable_params=sum(p.numel() for p in parameters if p.requires_grad),
        num_blocks=len(backbone.blocks),
        trainable_blocks=most,
        input_size=backbone.preprocessing.input_size,
        image_passes=trial.recipe.epochs * (num_images["train"] + num_images["val"]) + num_images["test"],
    )


def plan_table(plan: Plan) -> Table:
    """The plan for a terminal: one row a trial."""
    images = ", ".join(f"{count} {split}" for split, count in plan.num_images.items())
    table = Table(
        title=f"{plan.name}: {len(plan.trials)} trials, at most {plan.total_epochs} epochs and "
        f"{plan.total_image_passes} image passes over {images} images of {plan.num_classes} classes",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("trial", no_wrap=True)
    for column in ("pixels", "epochs", "lr", "blocks that train", "parameters that train"):
        table.add_column(column, justify="right")
    for trial in plan.trials:
        table.add_row(
            trial.trial_id,
            f"{trial.input_size[0]}x{trial.input_size[1]}",
            str(trial.epochs),
            f"{trial.params['lr']:.2g}",
            f"{trial.trainable_blocks} of {trial.num_blocks}",
            f"{trial.num_trainable_params:,} of {trial.num_params:,}",
        )
    return table
