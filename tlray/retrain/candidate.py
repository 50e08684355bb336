"""What could be the champion: the best export of a run, or a bundle, read from what lies there.

home, candidate = find_candidate("s3://bucket/runs/birds/20260101-120000-ab12")
"""

import json

from tlray import storage
from tlray.champion import Candidate
from tlray.config import WarmStart
from tlray.data.manifest import load_manifest
from tlray.errors import DataError, InputError
from tlray.export.files import CHECKSUMS, METRICS, read_bundle_config, read_checksums, read_verified
from tlray.prepare import load_trial

SCORES = ("val_accuracy", "test_accuracy", "test_macro_f1", "gain", "gain_low", "gain_high")


def find_candidate(uri: str) -> tuple[str | None, Candidate]:
    """(`<storage>/<name>` that the run belongs to, its candidate) of a run folder or an export bundle.

    A bundle that does not lie in a run folder belongs to none. DataError for what is neither.
    """
    location = storage.absolute(uri)
    export = location if storage.exists(storage.join(location, CHECKSUMS)) else best_export(location)
    above = export.rsplit("/", 2)
    run = above[0] if above[1] == "exports" and storage.exists(storage.join(above[0], "config.yaml")) else None
    return (run.rpartition("/")[0] if run is not None else None), read_candidate(export, run)


def best_export(run_uri: str) -> str:
    """The export of the best trial of a run; DataError where there is none."""
    folder = storage.join(run_uri, "exports")
    try:
        uris = [file.uri for file in storage.list_files(folder) if file.uri.endswith(f"/{CHECKSUMS}")]
    except storage.NotFoundError:
        uris = []
    bundles = {uri.rpartition("/")[0]: uri.split("/")[-2].partition("-")[0] for uri in uris}
    ranked = [bundle for bundle, rank in bundles.items() if rank.isdecimal()]
    if not ranked:
        raise DataError(
            f"{run_uri} is neither an export bundle (it has no {CHECKSUMS}) nor a run folder with exports; "
            "`tlray export RUN` writes them"
        )
    return min(ranked, key=lambda bundle: int(bundles[bundle]))


def read_candidate(export: str, run: str | None) -> Candidate:
    """What a bundle says of itself, and where it is of a run, what the run knows of its trial and its images."""
    checksums = read_checksums(export)
    config = read_bundle_config(export, checksums)
    metrics = json.loads(read_verified(export, METRICS, checksums))
    trial_id = str(metrics.get("trial_id", ""))
    return Candidate(
        export=export,
        run=run,
        trial_id=trial_id,
        backbone=config.backbone.id,
        strategy=config.strategy,
        params=config.params,
        classes=config.classes,
        metrics={name: metrics.get(name) for name in SCORES},
        fingerprint=load_manifest(run).fingerprint if run is not None else None,
        start=_start(run, trial_id) if run is not None else None,
    )


def home_of(target: str, default_storage: str) -> str:
    """`<storage>/<name>` that a person means: by a YAML file, champion.json, its folder, a run, an export or a name.

    InputError where there is nothing of the kind.
    """
    if target.endswith((".yaml", ".yml")):
        from tlray.config.file import parse_config

        config = parse_config(storage.read_text(target), source=target)
        return storage.join(storage.absolute(config.storage), config.name)
    location = storage.absolute(target)
    named = storage.join(storage.absolute(default_storage), target)
    for home in (location, location.rpartition("/")[0], location.rsplit("/", 3)[0], named):
        if storage.exists(storage.join(home, "champion.json")):
            return home
    raise InputError(f"{target}: there is no champion.json at it, above it, or in {named}")


def _start(run: str, trial_id: str) -> WarmStart | None:
    if not trial_id:
        return None
    trial = load_trial(run, trial_id)
    return WarmStart(backbone=trial.backbone, strategy=trial.strategy, training=trial.recipe)
