"""One backbone's row of a ranking, from a run whose activations are in the store.

row = rank_backbone(run, position)      # of run.config.chosen_backbones
"""

import time

from tlray.activations.charges import load_charges
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.planned import ActivationSource
from tlray.errors import TlrayError
from tlray.models.backbone import build_backbone
from tlray.ranking.features import read_features, read_probabilities
from tlray.ranking.result import RankedBackbone
from tlray.ranking.scores import score_features
from tlray.runs.prepare import Run


def rank_backbone(run: Run, position: int) -> RankedBackbone:
    """The row without its rank; with the reason in place of the scores where there can be none."""
    config = run.config.chosen_backbones[position]
    source = next((source for source in run.plan.activations if source.backbone == config), None)
    row = RankedBackbone(backbone=config)
    if source is None or not source.materialise:
        return row.model_copy(update={"error": source.reason if source else "it has no blocks that could be frozen"})
    try:
        return _scored(run, source, row)
    except (TlrayError, ValueError) as error:
        return row.model_copy(update={"error": str(error)})


def _scored(run: Run, source: ActivationSource, row: RankedBackbone) -> RankedBackbone:
    started = time.perf_counter()
    labels = run.manifest.images.labels  # type: ignore[attr-defined]
    ids = [image.content_id for image in run.manifest.images]
    reader = open_store(run.config).reader(ActivationKey(**source.keys[0]), ids)
    backbone = build_backbone(source.backbone, len(run.manifest.classes), seed=source.seed)
    features = read_features(backbone, reader)
    scores = score_features(
        features, labels, read_probabilities(source.backbone, backbone, reader), seed=run.config.seed
    )
    return row.model_copy(
        update={
            "scores": scores,
            "num_features": features.shape[1],
            "prefix_images_computed": load_charges(run.uri).get(source.trials[0], 0),
            "seconds": time.perf_counter() - started,
        }
    )
