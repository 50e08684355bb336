"""ranking/: the subset, ranks and shortlist, what tables and the report say of them."""

from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from made_up_run import make_run
from rich.console import Console

from tlray.config import BackboneConfig, RankingConfig, RunConfig
from tlray.data.manifest import Image, Manifest
from tlray.errors import BackboneError, ConfigError, DataError
from tlray.ranking.result import (
    RankedBackbone,
    Ranking,
    describe_choice,
    load_ranking,
    make_ranking,
    save_ranking,
    shortlisted,
    wants_shortlist,
)
from tlray.ranking.subset import choose_subset
from tlray.ranking.tables import ranking_table
from tlray.ranking.trust import agreement
from tlray.report import agreement_table, read_found, write_report
from tlray.report.ranking import best_accuracies
from tlray.runs.board import make_leaderboard
from tlray.runs.trials import load_results

LABELS = np.array([0, 0, 0, 1])


def manifest(counts: dict[str, list[int]]) -> Manifest:
    """Images by split: how many of each class."""
    images = [
        Image(f"{split}/{label}/{i}.jpg", label, split, sha256(f"{split}{label}{i}".encode()).hexdigest(), 9, 8, 8)
        for split, of_class in counts.items()
        for label, num in enumerate(of_class)
        for i in range(num)
    ]
    return Manifest(("a", "b", "c"), images)


def row(name: str, probe: float | None = None, knn: float = 0.5, error: str | None = None) -> RankedBackbone:
    scores = {} if error else {"linear_probe": probe, "knn": knn, "leep": None}
    return RankedBackbone(backbone=BackboneConfig(id=f"timm/{name}"), scores=scores, error=error)


def ranking_of(*rows: RankedBackbone, **settings: object) -> Ranking:
    return make_ranking(rows, RankingConfig.model_validate(settings), LABELS, seconds=1.0)


def names(rows: tuple[RankedBackbone, ...]) -> list[str]:
    return [row.backbone.id.removeprefix("timm/") for row in rows]


def test_the_subset_holds_training_images_in_proportion_and_two_of_a_small_class() -> None:
    subset = choose_subset(manifest({"train": [300, 100, 3], "val": [50, 50, 50]}), 40)
    assert {image.split for image in subset.images} == {"train"}
    assert Counter(image.label for image in subset.images) == {0: 30, 1: 10, 2: 2}


def test_the_subset_is_the_same_whatever_the_files_are_called_and_grows_by_adding() -> None:
    whole = manifest({"train": [60, 30, 9]})
    renamed = Manifest(
        whole.classes, [Image(f"x{i}", *_rest(image)) for i, image in enumerate(reversed(list(whole.images)))]
    )
    small, same, large = choose_subset(whole, 20), choose_subset(renamed, 20), choose_subset(whole, 50)
    ids = [{image.content_id for image in subset.images} for subset in (small, same, large)]
    assert ids[0] == ids[1] < ids[2]


def _rest(image: Image) -> tuple:
    return image.label, image.split, image.content_id, image.num_bytes, image.width, image.height


def test_copies_of_one_image_are_ranked_on_once() -> None:
    whole = manifest({"train": [10, 10, 0]})
    twice = Manifest(whole.classes, [*whole.images, *whole.images])
    assert choose_subset(twice, 1000).images == choose_subset(whole, 1000).images


def test_a_single_class_cannot_be_ranked_on() -> None:
    with pytest.raises(DataError, match="two classes"):
        choose_subset(manifest({"train": [10, 0, 0], "val": [3, 3, 3]}), 5)


def test_the_best_are_chosen_by_the_score_that_decides() -> None:
    rows = (row("a", 0.7, knn=0.9), row("b", 0.9, knn=0.1), row("c", 0.8, knn=0.5))
    by_probe = ranking_of(*rows, shortlist=2)
    assert names(by_probe.rows) == ["b", "c", "a"]
    assert [row.rank for row in by_probe.rows] == [1, 2, 3]
    assert names(by_probe.chosen) == ["b", "c"]
    assert names(ranking_of(*rows, shortlist=1, score="knn").chosen) == ["a"]
    assert names(ranking_of(*rows).chosen) == ["b", "c", "a"]


def test_the_mean_rank_counts_the_scores_that_all_backbones_have() -> None:
    first = row("a", 0.9, knn=0.2).model_copy(update={"scores": {"linear_probe": 0.9, "knn": 0.2, "leep": -0.1}})
    ranking = ranking_of(row("b", 0.8, knn=0.6), first, row("c", 0.7, knn=0.3), score="mean_rank", shortlist=1)
    assert names(ranking.rows) == ["b", "a", "c"]  # places 2+1, 1+3, 3+2


def test_a_backbone_without_scores_comes_last_and_is_left_out_first() -> None:
    rows = (row("a", error="it has no blocks"), row("b", 0.4), row("c", 0.6))
    assert names(ranking_of(*rows, shortlist=2).chosen) == ["c", "b"]
    assert names(ranking_of(*rows).chosen) == ["c", "b", "a"]
    assert ranking_of(*rows).rows[-1].rank is None
    with pytest.raises(BackboneError, match="timm/a: it has no blocks"):
        ranking_of(rows[0])


def test_similarity_is_the_best_probe_between_a_guess_and_certainty() -> None:
    assert ranking_of(row("a", 0.75)).largest_class == 0.75
    assert ranking_of(row("a", 0.75)).similarity == 0
    assert ranking_of(row("a", 0.5)).similarity == 0
    assert ranking_of(row("a", 0.5), row("b", 0.9)).similarity == pytest.approx(0.6)
    assert ranking_of(row("a", 1.0)).similarity == 1


def test_the_shortlist_keeps_the_order_of_the_configuration_and_the_baseline() -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "data": {"train": "images"},
            "backbones": ["timm/a", "timm/b", "timm/c"],
            "ranking": {"shortlist": 2},
        }
    )
    assert wants_shortlist(config)
    assert not wants_shortlist(config.model_copy(update={"ranking": RankingConfig(shortlist=3)}))
    kept = shortlisted(config, ranking_of(row("a", 0.8), row("b", 0.1), row("c", 0.9), shortlist=2))
    assert [backbone.id for backbone in kept.backbones] == ["timm/a", "timm/c"]
    assert kept.baseline == config.baseline


def test_what_was_chosen_is_said_with_the_scores_that_decided() -> None:
    ranking = ranking_of(row("a", 0.8), row("b", 0.125), row("c", error="too new"), shortlist=1)
    assert describe_choice(ranking) == (
        "by linear probe on 4 training images the sweep goes on with timm/a (0.800); "
        "left out: timm/b (0.125), timm/c (too new)"
    )


def test_a_ranking_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    ranking = ranking_of(row("a", 0.8), row("b", error="too new"), shortlist=1)
    assert load_ranking(str(tmp_path)) is None
    save_ranking(ranking, str(tmp_path))
    assert load_ranking(str(tmp_path)) == ranking


def test_the_table_fits_120_columns_and_says_who_could_not_be_scored() -> None:
    ranking = ranking_of(row("mobilenetv4_conv_small.e2400_r224_in1k", 0.8), row("b", error="too [new]"), shortlist=1)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(ranking_table(ranking))
        text = console.export_text()
    assert "80.0" in text
    assert "timm/b could not be scored: too [new]" in text
    assert "…" not in text


def test_agreement_is_of_backbones_that_have_a_score_and_a_trial_and_needs_three() -> None:
    ranking = ranking_of(row("a", 0.9, knn=0.1), row("b", 0.8, knn=0.2), row("c", 0.7, knn=0.3), row("d", 0.6))
    found = {(f"timm/{name}", "pretrained"): accuracy for name, accuracy in (("a", 0.95), ("b", 0.9), ("c", 0.85))}
    probe, knn = agreement(ranking, found)
    assert (probe.score, probe.num_backbones, probe.weighted_tau, probe.spearman) == ("linear_probe", 3, 1, 1)
    assert (knn.weighted_tau, knn.spearman) == (-1, -1)
    few = dict(list(found.items())[:2])
    assert [(one.num_backbones, one.weighted_tau) for one in agreement(ranking, few)] == [(2, None), (2, None)]


def test_the_report_compares_the_ranking_with_what_the_sweep_found(tmp_path: Path) -> None:
    backbones = ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"]
    make_run(str(tmp_path), backbones=backbones)
    assert read_found(str(tmp_path), make_leaderboard(str(tmp_path))) is None
    best = best_accuracies(load_results(str(tmp_path)))
    assert set(best) == {(backbone, "pretrained") for backbone in backbones}
    rows = [row(one.removeprefix("timm/"), best[one, "pretrained"], knn=-best[one, "pretrained"]) for one in backbones]
    save_ranking(ranking_of(*rows, row("left_out", 0.01), shortlist=3), str(tmp_path))
    found = read_found(str(tmp_path), make_leaderboard(str(tmp_path)))
    assert found is not None
    assert [(one.score, one.spearman) for one in found.agreements] == [
        ("linear_probe", pytest.approx(1)),
        ("knn", pytest.approx(-1)),
    ]
    write_report(str(tmp_path))
    html = (tmp_path / "report.html").read_text()
    for statement in ("How the backbones were chosen", "timm/left_out", "+1.00", "-1.00", "weighted tau"):
        assert statement in html
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(agreement_table(found))
        assert "+1.00" in console.export_text()


def test_the_best_trial_of_a_backbone_is_chosen_by_validation_and_scratch_is_not_of_its_weights(tmp_path: Path) -> None:
    make_run(str(tmp_path), backbones=["timm/test_vit"])
    rows = [result for result in load_results(str(tmp_path)) if not result.is_baseline]
    lucky = rows[0].model_copy(update={"test_accuracy": 1.0, "val_accuracy": 0.0})
    scratch = rows[1].model_copy(update={"strategy": "scratch", "val_accuracy": 1.0, "test_accuracy": 0.99})
    best = max(rows[2:], key=lambda result: result.val_accuracy or 0)
    assert best_accuracies([lucky, scratch, *rows[2:]]) == {("timm/test_vit", "pretrained"): best.test_accuracy}


@pytest.mark.parametrize(
    ("field", "value"), [("shortlist", 0), ("images", 3), ("score", "leep")], ids=["none", "few", "no source head"]
)
def test_a_ranking_that_cannot_be_is_refused(field: str, value: object) -> None:
    from tlray.config.file import parse_config

    text = "name: x\ndata: {train: images}\nbackbones: [timm/a]"
    with pytest.raises(ConfigError, match=rf"ranking\.{field}"):
        parse_config(text, [f"ranking.{field}={value}"])
