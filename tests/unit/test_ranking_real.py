"""Real backbones against the same architectures with random weights, on three real data sets: every score can tell.

Run: python -m pytest -m slow tests/unit/test_ranking_real.py -s      (prints the scores)
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tlray.activations.keys import ActivationKey
from tlray.activations.local_pass import compute_here
from tlray.activations.location import open_store
from tlray.config import RankingConfig, RunConfig
from tlray.models.backbone import build_backbone
from tlray.models.split import trainable_suffix
from tlray.planning.planner import plan_ranking
from tlray.ranking.backbone import rank_backbone
from tlray.ranking.leep import leep
from tlray.ranking.result import make_ranking
from tlray.ranking.scores import NAMES
from tlray.ranking.tables import ranking_table
from tlray.runs.prepare import prepare_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BACKBONES = {
    "torchvision/mobilenet_v2": {},
    "timm/mobilenetv1_100": {},
    "torchvision/squeezenet1_0": {},
    "timm/mobilenetv2_035": {"pad_type": "same"},
}
NUM_SOURCE_CLASSES = 1000


@pytest.mark.parametrize("data", ["hymenoptera", "dogcat", "cifar10"])
def test_pre_trained_backbones_rank_above_random_ones_under_every_score(
    shared_dir: Path, tmp_path: Path, data: str
) -> None:
    folder = shared_dir / "data" / data
    if not folder.is_dir():
        pytest.skip(f"no {data} in {folder.parent}")
    trained = [
        {
            "id": id_,
            "weights": str(shared_dir / "weights" / f"{id_.rpartition('/')[2]}.safetensors"),
            "options": options,
        }
        for id_, options in BACKBONES.items()
    ]
    config = RunConfig.model_validate(
        {
            "name": data,
            "storage": str(tmp_path),
            "data": {"train": str(folder / "train"), "val": str(folder / "val"), "test": str(folder / "val")}
            | {"exclude": ["*.gif"], "max_leaked_fraction": 1},
            "backbones": [*trained, *({**one, "weights": "none"} for one in trained)],
            "ranking": {"images": 300},
            "activations": {"dtype": "float32"},  # random weights make numbers that float16 rounds to zero
        }
    )
    planned, _ = plan_ranking(config)
    run = prepare_run(planned, str(tmp_path / "run"))
    compute_here(run.uri, run.config, run.manifest, run.plan.activations, torch.device("cpu"), lambda done, total: None)
    rows = [rank_backbone(run, position) for position in range(len(run.config.backbones))]
    labels = np.array([image.label for image in run.manifest.images])
    Console(width=140).print(ranking_table(make_ranking(rows, RankingConfig(), labels, seconds=0.0)))
    assert [row.error for row in rows] == [None] * len(rows)
    for name in NAMES:
        if name == "leep":
            continue
        values = [row.scores[name] or 0.0 for row in rows]
        assert min(values[: len(trained)]) > max(values[len(trained) :]), f"{name}: {values}"

    leeps = [row.scores["leep"] for row in rows]
    with_head = [value for value in leeps if value is not None]
    assert [value is not None for value in leeps] == [True, False, True, False, *[False] * 4]
    untrained = []
    for backbone, source in zip(run.config.backbones, run.plan.activations, strict=True):
        if backbone.weights == "none":
            ids = [image.content_id for image in run.manifest.images]
            values = open_store(run.config).reader(ActivationKey(**source.keys[0]), ids).read(np.arange(len(ids)))
            suffix = trainable_suffix(build_backbone(backbone, NUM_SOURCE_CLASSES, seed=1), source.num_blocks)
            with torch.inference_mode():
                untrained.append(leep(suffix(*values).softmax(dim=1).numpy(), labels))
    assert min(with_head) > max(untrained)
