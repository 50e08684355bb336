"""A run folder with everything decided, before a trial starts; and reading one again. Neither Ray nor torch here.

run = prepare_run(plan_run(config), new_run_uri(config))    # plan_run raises what is wrong with the user's input
run = load_run(run_uri)                                     # what `resume`, `report` and `export` work from
"""

import math
import secrets
import time
from dataclasses import dataclass
from typing import Any

from tlray import storage
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.config.file import dump_config, parse_config
from tlray.config.query import BackboneQuery
from tlray.config.search_space import list_trials
from tlray.data.manifest import Manifest
from tlray.errors import DamagedError, StorageError
from tlray.runs.budget.choice import limit_seconds
from tlray.runs.budget.clock import read_spent
from tlray.runs.folder import (
    BAD_IMAGES,
    CONFIG,
    MANIFEST,
    PLAN,
    RANKING,
    is_verified,
    read_format,
    read_verified,
    write_format,
)
from tlray.runs.manifest import load_manifest, save_bad_images, save_manifest
from tlray.runs.notes import leave_note
from tlray.runs.plan import Plan, PlannedRun, load_plan, save_plan
from tlray.runs.trials import RESULT, TRIAL, for_each, trial_uri, trials_with
from tlray.storage.sealed import checksum_of, read_document, write_document


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
    trials = {trial.trial_id: trial for trial in planned.trials}
    for_each(list(trials), lambda trial_id: _save_trial(trials[trial_id], run_uri))
    checksums = {CONFIG: checksum_of(dump_config(planned.config).encode()), PLAN: save_plan(planned.plan, run_uri)}
    ranking = storage.join(run_uri, RANKING)
    if storage.exists(ranking):  # what chose the backbones was written before they were planned
        checksums[RANKING] = checksum_of(storage.read_bytes(ranking))
    # the format is last: a folder that has it can be resumed
    write_format(run_uri, checksums | save_manifest(planned.manifest, run_uri))
    return Run(run_uri, planned.config, planned.manifest, planned.trials, planned.plan)


def load_run(run_uri: str) -> Run:
    """An existing run; StorageError where there is none, one that was killed before it was prepared, or damage."""
    run_uri = storage.absolute(run_uri)
    config = load_run_config(run_uri)
    return Run(run_uri, config, load_manifest(run_uri), tuple(list_trials(config)), load_plan(run_uri))


def load_run_config(run_uri: str) -> RunConfig:
    """The resolved configuration of an existing run, without its manifest."""
    return parse_config(read_verified(run_uri, CONFIG).decode(), source=run_uri)


def load_trial(run_uri: str, trial_id: str) -> TrialConfig:
    """One trial of a run, without all the others; worked out from the configuration again where its file is damaged."""
    uri = trial_uri(run_uri, trial_id, TRIAL)
    try:
        trial = TrialConfig.model_validate(read_document(uri, "`tlray resume` makes it again"))
        if trial.trial_id == trial_id:
            return trial
    except (DamagedError, storage.NotFoundError):
        pass
    trials = {trial.trial_id: trial for trial in list_trials(load_run_config(run_uri))}
    if trial_id not in trials:
        raise StorageError(f"{uri} is damaged or missing, and {CONFIG} of the run has no trial {trial_id!r}")
    _save_trial(trials[trial_id], run_uri)
    leave_note(run_uri, f"trials/{trial_id}: {TRIAL} was damaged or missing, and is made again from {CONFIG}")
    return trials[trial_id]


def check_derived(run: Run) -> None:
    """What a resume asks of the small files beside the trials; DamagedError for one that cannot be made again."""
    checksums = read_format(run.uri)
    if RANKING in checksums and not is_verified(run.uri, RANKING, checksums):
        remedy = f"restore it from a copy, or start a new run with `tlray run {run.uri}/{CONFIG}`"
        raise DamagedError(f"{storage.join(run.uri, RANKING)} is damaged or missing: {remedy}")
    if math.isfinite(limit_seconds(run.config)) and read_spent(run.uri) is None and trials_with(run.uri, RESULT):
        leave_note(run.uri, "budget.json is missing; the run's time is counted from nothing")
    if not is_verified(run.uri, BAD_IMAGES, checksums):
        save_bad_images(run.manifest, run.uri)
        leave_note(run.uri, f"{BAD_IMAGES} was damaged or missing, and is made again from {MANIFEST}")


def _save_trial(trial: TrialConfig, run_uri: str) -> None:
    write_document(trial_uri(run_uri, trial.trial_id, TRIAL), trial.model_dump(mode="json"))


def finish(run: Run) -> None:
    """Mark the run folder as whole; its last write."""
    write_document(storage.join(run.uri, "DONE"), {"finished": time.time()})
