"""Backbones are ranked on a real Ray: the sweep reads what the ranking computed, and trains the chosen ones alone."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from tlray import storage
from tlray.config import RunConfig
from tlray.ranking.result import load_ranking
from tlray.runs.prepare import load_run, new_run_uri
from tlray.runs.trials import load_results
from tlray.workflows.run import rank, resume, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
MakeConfig = Callable[..., RunConfig]
BACKBONES = [
    {"id": "timm/test_resnet", "weights": "none", "input_size": 32},
    {"id": "timm/test_efficientnet", "weights": "none", "input_size": 32},
]
PROBES = {"strategy": "linear_probe", "training": {"epochs": 1, "augmentation": "none"}}


def test_what_a_ranking_computes_the_sweep_does_not_compute_again(make_config: MakeConfig) -> None:
    fields = {"strategies": [PROBES], "activations": {"materialise": "always"}, "ranking": {"images": 12}}
    config = make_config(backbones=BACKBONES, **fields)
    ranked_uri = new_run_uri(config)
    ranking = rank(config, ranked_uri, Console(file=io.StringIO()))
    assert load_ranking(ranked_uri) == ranking
    assert [row.rank for row in ranking.rows] == [1, 2]
    assert {row.prefix_images_computed for row in ranking.rows} == {ranking.num_images}
    assert 9 <= ranking.num_images <= 15

    run_uri = new_run_uri(config)
    run(config, run_uri, Console(file=io.StringIO()))
    num_others = len(load_run(run_uri).manifest.images) - ranking.num_images
    computed = [result.prefix_images_computed for result in load_results(run_uri) if not result.is_baseline]
    assert computed == [num_others, num_others]


def test_a_run_trains_the_shortlist_and_the_baseline_and_a_resume_ranks_nothing(
    make_config: MakeConfig,
) -> None:
    config = make_config(
        backbones=BACKBONES,
        strategies="auto",
        training={"epochs": 1, "batch_size": 8, "augmentation": "none"},
        ranking={"shortlist": 1, "images": 12, "score": "mean_rank"},
        export={"top_k": 0},
    )
    run_uri = new_run_uri(config)
    said = io.StringIO()
    run(config, run_uri, Console(file=said, width=300))
    ranking = load_ranking(run_uri)
    assert ranking is not None
    (best,) = ranking.chosen
    loaded = load_run(run_uri)
    assert loaded.config.backbones == (best.backbone,)
    results = load_results(run_uri)
    assert {result.backbone for result in results if not result.is_baseline} == {best.backbone.id}
    assert sum(result.is_baseline for result in results) == 1
    assert {result.strategy for result in results} == {s.label for s in loaded.config.strategies} | {"scratch"}
    assert "strategies: auto is linear_probe" in loaded.plan.notes[0]
    assert "similarity 0." in loaded.plan.notes[0] or "similarity 1." in loaded.plan.notes[0]
    for sentence in ("by the mean of its ranks", best.backbone.id, "left out", "which score to trust"):
        assert sentence in said.getvalue()
    assert "How the backbones were chosen" in storage.read_text(storage.join(run_uri, "report.html"))

    before = storage.read_bytes(storage.join(run_uri, "ranking.json"))
    said = io.StringIO()
    resume(run_uri, Console(file=said))
    assert "left out" not in said.getvalue()
    assert storage.read_bytes(storage.join(run_uri, "ranking.json")) == before
    assert json.loads(before)["score"] == "mean_rank"
