"""What could be the champion: the best export of a run, or a bundle, read from what lies there.

home, candidate = find_candidate("s3://bucket/runs/birds/20260101-120000-ab12")
"""

from tlray import storage
from tlray.config import WarmStart
from tlray.export.of_run import read_config
from tlray.inference.predict import find_export
from tlray.runs.bundle_sums import CHECKSUMS, METRICS, check_whole, read_checksums, read_verified
from tlray.runs.champion import Candidate
from tlray.runs.manifest import load_manifest
from tlray.runs.prepare import load_trial

SCORES = ("val_accuracy", "test_accuracy", "test_macro_f1", "gain", "gain_low", "gain_high")


def find_candidate(uri: str) -> tuple[str | None, Candidate]:
    """(`<storage>/<name>` that the run belongs to, its candidate) of a run folder or an export bundle.

    A bundle that does not lie in a run folder belongs to none. DataError for what is neither.
    """
    location = storage.absolute(uri)
    export = location if storage.exists(storage.join(location, CHECKSUMS)) else find_export(location)
    check_whole(export)
    above = export.rsplit("/", 2)
    run = above[0] if above[1] == "exports" and storage.exists(storage.join(above[0], "config.yaml")) else None
    return (run.rpartition("/")[0] if run is not None else None), read_candidate(export, run)


def read_candidate(export: str, run: str | None) -> Candidate:
    """What a bundle says of itself, and where it is of a run, what the run knows of its trial and its images."""
    config = read_config(export)
    metrics = storage.parse_object(
        read_verified(export, METRICS, read_checksums(export)), storage.join(export, METRICS)
    )
    trial_id = config.trial_id or ""
    return Candidate(
        export=export,
        run=run,
        trial_id=trial_id,
        backbone=config.title,
        strategy=config.strategy,
        params=config.params,
        classes=config.classes,
        metrics={name: metrics.get(name) for name in SCORES},
        fingerprint=load_manifest(run).fingerprint if run is not None else None,
        start=_start(run, trial_id) if run is not None and not config.members else None,
        checkpoint_sha256=config.checkpoint_sha256,
    )


def _start(run: str, trial_id: str) -> WarmStart | None:
    if not trial_id:
        return None
    trial = load_trial(run, trial_id)
    return WarmStart(backbone=trial.backbone, strategy=trial.strategy, training=trial.recipe)
