"""What a run will do, before it does it: images, trials, epochs, activations. `tlray plan` prints it; no torch here."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tlray import storage
from tlray.activations.planned import ActivationSource
from tlray.config import RunConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.runs.budget.estimate import Estimate
from tlray.runs.folder import PLAN, read_verified
from tlray.storage.sealed import write_checked


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
    seconds: float = 0.0  # expected, alone, without the start of its process
    gpu_share: float = 1.0  # of a GPU, where `sweep.gpus_per_worker` is auto


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
    activations: tuple[ActivationSource, ...] = ()
    estimate: Estimate | None = None  # None in plans of earlier versions
    notes: tuple[str, ...] = ()  # what was decided for the user, and why
    warnings: tuple[str, ...] = ()  # of the images, as in the manifest


@dataclass(frozen=True)
class PlannedRun:
    """All that is decided before a run starts."""

    config: RunConfig  # resolved: full ids, absolute locations
    manifest: Manifest
    trials: tuple[TrialConfig, ...]
    plan: Plan


def save_plan(plan: Plan, run_uri: str) -> str:
    """-> its sha256, for the run folder's format."""
    return write_checked(storage.join(run_uri, PLAN), plan.model_dump_json(indent=1).encode())


def load_plan(run_uri: str) -> Plan:
    return Plan.model_validate_json(read_verified(run_uri, PLAN))


def plan_tables(plan: Plan) -> Group:
    """The plan for a terminal: a row for each trial, for each cut that may be kept, for each stage; then the notes."""
    tables: list[RenderableType] = [_trial_table(plan)]
    if plan.activations:
        tables += [Table(box=None), activation_table(plan)]
    if plan.estimate is not None:
        tables += [Table(box=None), *_estimate_lines(plan.estimate)]
    tables += [Text(note) for note in plan.notes]
    tables += [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    return Group(*tables)


def _trial_table(plan: Plan) -> Table:
    images = ", ".join(f"{count} {split}" for split, count in plan.num_images.items())
    table = Table(
        title=f"{plan.name}: {len(plan.trials)} trials, at most {plan.total_epochs} epochs and "
        f"{plan.total_image_passes} image passes over {images} images of {plan.num_classes} classes",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("trial", no_wrap=True)
    for column in ("pixels", "epochs", "lr", "blocks that train", "parameters that train", "time"):
        table.add_column(column, justify="right")
    for trial in plan.trials:
        table.add_row(
            trial.trial_id,
            f"{trial.input_size[0]}x{trial.input_size[1]}",
            str(trial.epochs),
            f"{trial.params['lr']:.2g}" if "lr" in trial.params else "solved",
            f"{trial.trainable_blocks} of {trial.num_blocks}",
            f"{trial.num_trainable_params:,} of {trial.num_params:,}",
            in_words(trial.seconds),
        )
    return table


def activation_table(plan: Plan) -> Table:
    """A row for each cut that may be kept, with what decided it."""
    kept = [source for source in plan.activations if source.materialise]
    table = Table(
        title=f"frozen work: {len(kept)} of {len(plan.activations)} cuts are computed once and kept, "
        f"{sum(source.bytes_to_add for source in kept) / 1e6:.1f} MB to add",
        title_justify="left",
        caption="decode and prefix: ms an image, measured here; kept, again: s, estimated for all trials together; "
        "draws: images x views, of which stored already",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("frozen prefix", no_wrap=True)
    for column in ("trials", "reads", "draws", "stored", "KB", "decode", "prefix", "kept", "again"):
        table.add_column(column, justify="right")
    table.add_column("decision")
    for source in plan.activations:
        name = source.backbone.id.rpartition("/")[2]
        draw = f", {source.augmentation} x{source.views}" if source.augmentation != "none" else ""
        table.add_row(
            f"{name} {source.num_frozen}/{source.num_blocks}{draw}",
            str(len(source.trials)),
            str(source.num_reads),
            str(source.num_draws),
            str(source.num_stored),
            f"{source.bytes_per_image / 1000:.1f}",
            f"{source.decode_seconds * 1000:.1f}",
            f"{source.prefix_seconds * 1000:.1f}",
            f"{source.materialise_seconds:.1f}" if source.keys else "",
            f"{source.recompute_seconds:.1f}",
            f"{'keep' if source.materialise else 'recompute'}: {source.reason}",
        )
    return table


def _estimate_lines(estimate: Estimate) -> list[RenderableType]:
    price = f", at a price of {estimate.price:.2f}" if estimate.price is not None else ""
    lines = [f"expected: {in_words(estimate.seconds)}{price}, {estimate.bytes_to_store / 1e6:.1f} MB to store"]
    if estimate.dropped:
        lines.append(f"no room in the budget for {', '.join(estimate.dropped)}; what the others show may change that")
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("time", justify="right")
    for stage in estimate.stages:
        table.add_row(stage.name, in_words(stage.seconds))
    return [*(Text(line) for line in lines), table]


def in_words(seconds: float) -> str:
    """A duration for people: 8 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
