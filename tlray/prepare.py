"""From a configuration to a run folder with everything decided, before a trial starts. No Ray here.

    run = prepare_run(config, new_run_uri(config))     # raises what is wrong with the user's input, writes nothing then
    run = load_run(run_uri)                            # what `resume`, `report` and `export` work from

Checks go from the cheap to the dear: storage, images, every backbone with its weights, every freeze strategy on it.
"""

import json
import secrets
import time
from dataclasses import dataclass

from tlray import storage
from tlray.catalogue import resolve_id
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.config_file import dump_config, parse_config
from tlray.data.manifest import Manifest, load_manifest, make_manifest, save_manifest
from tlray.demo_data import make_demo_data
from tlray.errors import ConfigError, StorageError
from tlray.plan import Plan, make_plan
from tlray.search_space import list_trials


@dataclass(frozen=True)
class Run:
    """A run folder and what it holds from the start."""

    uri: str
    config: RunConfig
    manifest: Manifest
    trials: tuple[TrialConfig, ...]

    @property
    def is_done(self) -> bool:
        return storage.exists(storage.join(self.uri, "DONE"))


def new_run_uri(config: RunConfig) -> str:
    """A run folder's name that sorts by time and that nobody else has."""
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    return storage.join(storage.absolute(config.storage), config.name, run_id)


def prepare_run(config: RunConfig, run_uri: str) -> Run:
    """Check everything, make the manifest and write the run folder; InputError before the first write if it is off."""
    storage.check_writable(storage.absolute(config.storage))
    config, manifest, trials, plan = plan_run(config)
    if not storage.create_exclusive(storage.join(run_uri, "config.yaml"), dump_config(config).encode()):
        raise StorageError(f"{run_uri} is already a run: `tlray resume` goes on with it")
    for trial in trials:
        storage.write_text(
            storage.join(run_uri, "trials", trial.trial_id, "trial.json"), trial.model_dump_json(indent=1)
        )
    storage.write_text(storage.join(run_uri, "plan.json"), plan.model_dump_json(indent=1))
    save_manifest(manifest, run_uri)  # last: a folder with a manifest can be resumed
    return Run(run_uri, config, manifest, trials)


def plan_run(config: RunConfig) -> tuple[RunConfig, Manifest, tuple[TrialConfig, ...], Plan]:
    """All that a run would do, without a run folder: the resolved configuration, images, trials and the plan."""
    _check_batch_sizes(config)
    for backbone in (config.baseline.backbone, *config.backbones):
        resolve_id(backbone.id)
    config = _resolved(config)
    manifest = make_manifest(config.data, config.seed)
    trials = tuple(list_trials(config))
    plan = make_plan(config, manifest, trials)
    return config, manifest, trials, plan


def load_run(run_uri: str) -> Run:
    """An existing run; StorageError where there is none, or one that was killed before it was prepared."""
    run_uri = storage.absolute(run_uri)
    if not storage.exists(storage.join(run_uri, "config.yaml")):
        raise StorageError(f"{run_uri} is not a run folder: it has no config.yaml")
    if not storage.exists(storage.join(run_uri, "manifest.parquet")):
        raise StorageError(f"{run_uri} was interrupted before its first trial: start it again with `tlray run`")
    config = parse_config(storage.read_text(storage.join(run_uri, "config.yaml")), source=run_uri)
    return Run(run_uri, config, load_manifest(run_uri), tuple(list_trials(config)))


def finish(run: Run) -> None:
    """Mark the run folder as whole; its last write."""
    storage.write_text(storage.join(run.uri, "DONE"), json.dumps({"finished": time.time()}))


def _resolved(config: RunConfig) -> RunConfig:
    """Full backbone ids, absolute locations, and the demo's images and weights made where they are asked for."""
    data = config.data
    if data.synthetic is not None:
        made = make_demo_data(data.synthetic)
        data = data.model_copy(update={"synthetic": None, "train": made.train, "val": made.val, "test": made.test})
    locations = {name: storage.absolute(uri) for name in ("train", "val", "test") if (uri := getattr(data, name))}
    baseline = config.baseline.model_copy(update={"backbone": _resolved_backbone(config.baseline.backbone)})
    return config.model_copy(
        update={
            "storage": storage.absolute(config.storage),
            "data": data.model_copy(update=locations),
            "backbones": tuple(_resolved_backbone(backbone) for backbone in config.backbones),
            "baseline": baseline,
        }
    )


def _resolved_backbone(backbone: BackboneConfig) -> BackboneConfig:
    weights = backbone.weights
    if weights not in ("pretrained", "none"):
        weights = storage.absolute(weights)
    return backbone.model_copy(update={"id": resolve_id(backbone.id), "weights": weights})


def _check_batch_sizes(config: RunConfig) -> None:
    """Every worker gets two images of each global batch at least: BatchNorm cannot normalise a single one."""
    least = 2 * config.sweep.workers_per_trial
    for trial in list_trials(config):
        if trial.recipe.batch_size < least:
            raise ConfigError(
                f"training.batch_size {trial.recipe.batch_size} is too small for sweep.workers_per_trial "
                f"{config.sweep.workers_per_trial}: give at least {least}"
            )
