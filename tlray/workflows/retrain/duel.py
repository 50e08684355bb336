"""Challenger against champion: their answers to the same images, the verdict, and what is new in the data.

record = make_record(config, run, champion, cause, seconds)
"""

from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.errors import DamagedError, StorageError, TrialError
from tlray.runs.board import write_leaderboard
from tlray.runs.champion import Champion
from tlray.runs.manifest import load_manifest
from tlray.runs.prepare import Run
from tlray.runs.trials import load_results
from tlray.workflows.exports import export_best
from tlray.workflows.retrain.candidate import read_candidate
from tlray.workflows.retrain.features import drift_of
from tlray.workflows.retrain.images import compare, judged_images, names_of
from tlray.workflows.retrain.record import Record
from tlray.workflows.retrain.verdict import judge


def make_record(config: RunConfig, run: Run, champion: Champion | None, cause: str, seconds: float) -> Record:
    """All about a finished sweep; TrialError when only its baseline has succeeded."""
    exports = export_best(run, write_leaderboard(run.uri, seed=run.config.seed, warnings=run.manifest.warnings), 1)
    if not exports:
        raise TrialError(f"{run.uri}: no trial beside the baseline has succeeded, so there is no challenger")
    challenger = read_candidate(exports[0], run.uri)
    before = _manifest_of(champion)
    verdict, left_out = None, 0
    if champion is not None:
        from tlray.distributed.scoring import classify_on_cluster

        images, left_out = judged_images(run.manifest, before)
        truth = names_of(images, run.manifest.classes)
        ours, theirs = (
            classify_on_cluster(run.config, export, images) for export in (challenger.export, champion.export)
        )
        verdict = judge(truth, ours, theirs, config.retrain, known_to_champion=champion.classes)
    return Record(
        name=config.name,
        run=run.uri,
        cause=cause,
        champion=champion,
        challenger=challenger,
        outcome="first" if verdict is None else "promoted" if verdict.promote else "refused",
        verdict=verdict,
        left_out=left_out,
        num_images={split: len(run.manifest.split(split)) for split in ("train", "val", "test")},
        growth=compare(run.manifest, before) if before is not None else None,
        drift=drift_of(run, before, champion.backbone, config.retrain.drift_images) if before and champion else None,
        prefix_images_computed=sum(result.prefix_images_computed for result in load_results(run.uri)),
        seconds=seconds,
        settings=config.retrain,
        warm_start=run.config.warm_start is not None,
    )


def _manifest_of(champion: Champion | None) -> Manifest | None:
    """What the champion comes from; None where its run folder is gone or of another version, or it has none.

    DamagedError where it is damaged: without it, images that the champion has learned from would judge it.
    """
    if champion is None or champion.run is None:
        return None
    try:
        return load_manifest(champion.run)
    except DamagedError:
        raise
    except StorageError:
        return None
