"""A run folder with everything decided, before a trial starts; and reading one again. Neither Ray nor torch here.

run = prepare_run(plan_run(config), new_run_uri(config))    # plan_run raises what is wrong with the user's input
run = load_run(run_uri)                                     # what `resume`, `report` and `export` work from
"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from tlray import storage
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.config.file import dump_config, parse_config
from tlray.config.query import BackboneQuery
from tlray.data.manifest import Manifest, load_manifest, save_manifest
from tlray.errors import StorageError
from tlray.plan import Plan, PlannedRun, load_plan, save_plan
from tlray.search_space import list_trials


@dataclass(frozen=True)
class Run:
    """A run folder and what it holds from the start."""

    uri: str
    config: RunConfig
    manifest: Manifest
    trials: tuple[TrialConfig, ...]
    plan: Plan

    @property
    def is_done(self) -> bool:
        return storage.exists(storage.join(self.uri, "DONE"))


def new_run_uri(config: RunConfig) -> str:
    """A run folder's name that sorts by time and that nobody else has."""
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    return storage.join(storage.absolute(config.storage), config.name, run_id)


def with_absolute_locations(config: RunConfig) -> RunConfig:
    """Every location written so that a process elsewhere understands it, the store of activations included."""

    def absolute(section: Any, *names: str) -> dict[str, str]:
        return {name: storage.absolute(uri) for name in names if (uri := getattr(section, name)) is not None}

    def of_backbone(backbone: BackboneConfig) -> BackboneConfig:
        if backbone.weights in ("pretrained", "none"):
            return backbone
        return backbone.model_copy(update=absolute(backbone, "weights"))

    data: dict[str, Any] = absolute(config.data, "train", "val", "test")
    data["prepared"] = storage.absolute(config.data.prepared or storage.join(config.storage, "images"))
    if config.data.synthetic is not None:
        synthetic = config.data.synthetic
        data["synthetic"] = synthetic.model_copy(update=absolute(synthetic, "location"))
    backbones = (
        config.backbones if isinstance(config.backbones, BackboneQuery) else tuple(map(of_backbone, config.backbones))
    )
    first = config.warm_start
    if first is not None:
        first = first.model_copy(update={"backbone": of_backbone(first.backbone)})
    kept = config.activations.location or storage.join(config.storage, "activations")
    return config.model_copy(
        update={
            "storage": storage.absolute(config.storage),
            "activations": config.activations.model_copy(update={"location": storage.absolute(kept)}),
            "data": config.data.model_copy(update=data),
            "backbones": backbones,
            "warm_start": first,
            "baseline": config.baseline.model_copy(update={"backbone": of_backbone(config.baseline.backbone)}),
        }
    )


def prepare_run(planned: PlannedRun, run_uri: str) -> Run:
    """Write the run folder of what has been planned, and with it checked."""
    if not storage.create_exclusive(storage.join(run_uri, "config.yaml"), dump_config(planned.config).encode()):
        raise StorageError(f"{run_uri} is already a run: `tlray resume` goes on with it")
    for trial in planned.trials:
        storage.write_text(
            storage.join(run_uri, "trials", trial.trial_id, "trial.json"), trial.model_dump_json(indent=1)
        )
    save_plan(planned.plan, run_uri)
    save_manifest(planned.manifest, run_uri)  # last: a folder with a manifest can be resumed
    return Run(run_uri, planned.config, planned.manifest, planned.trials, planned.plan)


def load_run(run_uri: str) -> Run:
    """An existing run; StorageError where there is none, or one that was killed before it was prepared."""
    run_uri = storage.absolute(run_uri)
    if not storage.exists(storage.join(run_uri, "config.yaml")):
        raise StorageError(f"{run_uri} is not a run folder: it has no config.yaml")
    if not storage.exists(storage.join(run_uri, "manifest.parquet")):
        raise StorageError(f"{run_uri} was interrupted before its first trial: start it again with `tlray run`")
    config = load_run_config(run_uri)
    return Run(run_uri, config, load_manifest(run_uri), tuple(list_trials(config)), load_plan(run_uri))


def load_run_config(run_uri: str) -> RunConfig:
    """The resolved configuration of an existing run, without its manifest."""
    return parse_config(storage.read_text(storage.join(run_uri, "config.yaml")), source=run_uri)


def finish(run: Run) -> None:
    """Mark the run folder as whole; its last write."""
    storage.write_text(storage.join(run.uri, "DONE"), json.dumps({"finished": time.time()}))
