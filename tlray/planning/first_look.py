"""What can be known of a mistake at once: from the configuration and this machine's disk, without Ray and torch.

    look_at_config(config)      # InputError that names field, value and remedy; writes nothing that stays
    look_at_backbones(config)   # their ids; some libraries import torch to list them
    look_at_model("runs/birds") # the same for a model that is named

The plan checks all of it again where the work will be done, and what only it can see: images, weights, the cluster.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tlray import storage
from tlray.catalogue import is_library, resolve_id
from tlray.catalogue.acceptance import check_licences
from tlray.config import BackboneConfig, RunConfig
from tlray.config.search_space import list_trials
from tlray.errors import BackboneError, ConfigError, DataError
from tlray.models.weights.kinds import SUFFIXES, check_kind
from tlray.storage.locations import describe_missing, locate

NOT_FILES = ("pretrained", "none")  # values of a backbone's weights


def look_at_config(config: RunConfig) -> None:
    """All but the ids of backbones."""
    backbones = dict(_backbones(config))
    if isinstance(config.backbones, tuple):
        check_batch_sizes(config)
    _check_locations(config, backbones)
    for uri in (config.storage, config.activations.location, config.data.prepared):
        if uri is not None:
            storage.check_writable(storage.absolute(uri))


def look_at_backbones(config: RunConfig) -> None:
    """BackboneError for an id that no library has; each backbone once, with its licence accepted."""
    ids = {field: resolve_id(backbone.id) for field, backbone in _backbones(config)}
    if isinstance(config.backbones, tuple):
        _no_backbone_twice(config.backbones, [ids[f"backbones.{place}"] for place in range(len(config.backbones))])
        check_licences(config)


def look_at_model(given: str) -> None:
    """DataError for a location where no model can be, BackboneError for an id that no library has."""
    location = locate(given)
    if location.kind not in ("missing", "pattern"):
        if location.is_file and location.kind != "champion":
            raise DataError(f"{given} is {location.words}: give an export bundle, a run folder with exports, or an id")
        return
    if storage.is_remote(given) or given.startswith(("/", ".", "~")):
        raise DataError(describe_missing(given))
    if "/" in given and not is_library(given.partition("/")[0]):
        raise DataError(f"{describe_missing(given)} (no library of backbones is called so either)")
    resolve_id(given)


def look_at_location(given: str) -> None:
    """NotFoundError where nothing is; patterns are for those who list."""
    if locate(given).kind == "missing":
        raise storage.NotFoundError(describe_missing(given))


def check_batch_sizes(config: RunConfig) -> None:
    """Every worker gets two images of each global batch at least: BatchNorm cannot normalise a single one."""
    least = 2 * config.sweep.workers_per_trial
    for trial in list_trials(config):
        if trial.recipe.batch_size < least:
            raise ConfigError(
                f"training.batch_size {trial.recipe.batch_size} is too small for sweep.workers_per_trial "
                f"{config.sweep.workers_per_trial}: give at least {least}"
            )


def _backbones(config: RunConfig) -> Iterator[tuple[str, BackboneConfig]]:
    """Each with its field."""
    if isinstance(config.backbones, tuple):
        for place, backbone in enumerate(config.backbones):
            yield f"backbones.{place}", backbone
    yield "baseline.backbone", config.baseline.backbone
    if config.warm_start is not None:
        yield "warm_start.backbone", config.warm_start.backbone


def _no_backbone_twice(backbones: tuple[BackboneConfig, ...], ids: list[str]) -> None:
    """By full id: `resnet10t` and `timm/resnet10t` are one."""
    full = [backbone.model_copy(update={"id": name}) for backbone, name in zip(backbones, ids, strict=True)]
    for place, backbone in enumerate(full):
        first = full.index(backbone)
        if first < place:
            raise ConfigError(
                f"backbones.{place} {backbones[place].id} is the same as backbones.{first} {backbones[first].id}: "
                "remove one of them"
            )


def _check_locations(config: RunConfig, backbones: dict[str, BackboneConfig]) -> None:
    """What is read from this disk is there; on a cluster, other nodes may see what this one does not."""
    read = {f"data.{split}": getattr(config.data, split) for split in ("train", "val", "test")}
    for field, given in read.items():
        if given is not None and _is_missing(given):
            raise DataError(f"{field}: {describe_missing(given)}")
    for field, backbone in backbones.items():
        if backbone.weights not in NOT_FILES and _is_missing(backbone.weights):
            raise BackboneError(f"{field}.weights: {describe_missing(backbone.weights)}")
        if backbone.weights not in NOT_FILES:
            _check_weights_file(field, storage.absolute(backbone.weights))


def _check_weights_file(field: str, uri: str) -> None:
    """What is no weights file by its first bytes, of one on this disk."""
    if storage.is_remote(uri) or not os.path.isfile(uri) or Path(uri).suffix.lower() not in SUFFIXES:
        return
    try:
        check_kind(uri, Path(uri))
    except BackboneError as error:
        raise BackboneError(f"{field}.weights: {error}") from None


def _is_missing(given: str) -> bool:
    return not storage.is_remote(given) and not may_join_a_cluster() and locate(given).kind == "missing"


def may_join_a_cluster() -> bool:
    """Whether Ray would join one that runs already, of other machines too."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return bool(os.environ.get("RAY_ADDRESS")) or (Path(temporary) / "ray" / "ray_current_cluster").exists()
