"""Filters and units, the query in a configuration, licences that must be accepted, and the latency of a candidate."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tlray.catalogue import ModelFacts, all_models, latency, select
from tlray.catalogue.acceptance import check_licences
from tlray.catalogue.preprocessing import Preprocessing
from tlray.catalogue.query import find, matches, ordered
from tlray.catalogue.select import select_backbones
from tlray.config import RunConfig
from tlray.config.file import dump_config, parse_config
from tlray.errors import ConfigError
from tlray.planning.planner import plan_run

torch.set_num_threads(1)


def config(backbones: str, *lines: str) -> RunConfig:
    return parse_config("\n".join(["name: test", "data: {train: images}", f"backbones: {backbones}", *lines]))


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"max_params": "10M"}, lambda facts: facts.num_params <= 10_000_000),
        ({"max_params": 5e6}, lambda facts: facts.num_params <= 5_000_000),
        ({"max_size": "30MB"}, lambda facts: facts.size_mb <= 30),
        ({"max_size": "0.1 GiB"}, lambda facts: facts.size_mb <= 102.4),
        ({"max_gflops": 1}, lambda facts: facts.gflops <= 1),
        ({"max_gflops": "500M"}, lambda facts: facts.gflops <= 0.5),
        ({"min_top1": 85}, lambda facts: facts.top1 >= 85),
        ({"family": "resnet"}, lambda facts: facts.family == "resnet"),
        ({"family": "regnet*"}, lambda facts: facts.family.startswith("regnet")),
        ({"input": 384}, lambda facts: facts.input_size == 384),
        ({"licence": "Apache-2.0"}, lambda facts: facts.licence == "apache-2.0"),
        ({"trained_on": "in21k"}, lambda facts: "in21k" in facts.trained_on.split("+")),
        ({"library": "torchvision"}, lambda facts: facts.id.startswith("torchvision/")),
        ({"pretrained": True}, lambda facts: facts.weights),
        ({"pattern": "timm/*mobilenet*"}, lambda facts: facts.id.startswith("timm/") and "mobilenet" in facts.id),
    ],
)
def test_a_filter_keeps_exactly_what_it_says(filters: dict[str, Any], holds: Any) -> None:
    found = find({"pretrained": False, **filters})
    assert found
    assert all(holds(facts) for facts in found)
    kept = {facts.id for facts in found}
    for facts in all_models():
        if facts.id not in kept:
            with suppress(TypeError, AttributeError):  # a figure that is not known does not pass
                assert not holds(facts), facts.id


def test_filters_hold_together() -> None:
    found = find({"max_params": "10M", "max_size": "30MB", "max_gflops": 1, "min_top1": 75, "licence": "apache-2.0"})
    assert "timm/tf_efficientnet_b0.ns_jft_in1k" in {facts.id for facts in found}
    assert all(facts.num_params <= 1e7 and facts.top1 >= 75 for facts in found)  # type: ignore[operator]


def test_sorting_puts_the_best_first_and_the_unknown_last_in_either_direction() -> None:
    models = [ModelFacts(id=str(top1), top1=top1) for top1 in (70.0, None, 80.0)]
    assert [facts.top1 for facts in ordered(models, "top1")] == [80.0, 70.0, None]
    assert [facts.top1 for facts in ordered(models, "top1", reverse=True)] == [70.0, 80.0, None]
    small, large = ModelFacts(id="a", num_params=1), ModelFacts(id="b", num_params=2)
    assert ordered([large, small], "params") == [small, large]


def test_a_pattern_fits_an_id_with_or_without_library_and_tag() -> None:
    facts = ModelFacts(id="timm/resnet18.a1_in1k", library="timm", name="resnet18", tag="a1_in1k")
    for pattern in ("", "resnet18", "RESNET", "a1_in1k", "resnet1?", "timm/resnet*", "*.a1_in1k", "timm/resnet1?"):
        assert matches(facts, pattern), pattern
    for pattern in ("resnet50", "resnet", "torchvision/*"):
        assert matches(facts, pattern) == (pattern == "resnet")


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"max_params": "10X"}, "max_params: '10X' is not an amount such as 10M"),
        ({"max_size": "big"}, "max_size: 'big' is not an amount such as 30MB"),
        ({"min_top1": 0.8}, "min_top1: .*greater than or equal to 1, not 0.8"),
        ({"family": "resnt"}, "family 'resnt': nothing in the catalogue has it; did you mean .*resnet"),
        ({"trained_on": "imagenet"}, "trained_on 'imagenet': nothing"),
        ({"library": "keras-hub"}, "library 'keras-hub': nothing"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_with_its_name(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(filters)


def test_a_query_in_the_configuration_becomes_the_list_of_the_best_that_it_means() -> None:
    query = "{max_params: 30M, min_top1: 80, library: torchvision, limit: 3, shortlist: 2}"
    answered = select_backbones(config(query))
    wanted = [f for f in all_models() if f.library == "torchvision" and f.top1 >= 80 and f.num_params <= 30e6]  # type: ignore[operator]
    best = sorted(wanted, key=lambda facts: -(facts.top1 or 0))[:3]
    assert [backbone.id for backbone in answered.chosen_backbones] == [facts.id for facts in best]
    assert {backbone.weights for backbone in answered.chosen_backbones} == {"pretrained"}
    assert answered.ranking.shortlist == 2
    assert select_backbones(answered) is answered
    assert parse_config(dump_config(answered)) == answered


def test_a_configuration_with_a_query_survives_yaml() -> None:
    asked = config("{max_size: 30MB, max_gflops: 500M, max_latency_ms: 20, batch_size: 8}")
    assert parse_config(dump_config(asked)) == asked


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("{max_sise: 30MB}", "backbones.max_sise: unknown key 'max_sise'; did you mean 'max_size'"),
        ("{max_params: lots}", "backbones.max_params: 'lots' is not an amount"),
        ("[{idd: x}]", "backbones.0.idd: unknown key 'idd'; did you mean 'id'"),
    ],
)
def test_a_mistake_in_a_query_or_a_list_is_named_with_its_place(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(query)


def test_a_query_that_nothing_answers_says_what_was_asked() -> None:
    with pytest.raises(ConfigError, match=r"no model of the catalogue has max_params 1000.0, min_top1 90"):
        select_backbones(config("{max_params: 1k, min_top1: 90}"))


def test_a_query_leaves_out_weights_whose_licence_is_not_accepted() -> None:
    query = "{pattern: 'torchvision/vit_b_16*', library: torchvision}"
    ids = [backbone.id for backbone in select_backbones(config(query)).chosen_backbones]
    assert ids == ["torchvision/vit_b_16.IMAGENET1K_V1"]
    accepted = select_backbones(config(query, "accept_licences: [SWAG]")).chosen_backbones
    assert accepted[0].id == "torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1"
    with pytest.raises(ConfigError, match=r"none of them can be used here; accept_licences: \[swag\]"):
        select_backbones(config("{pattern: 'torchvision/vit_h_14*'}"))


def test_a_licence_that_binds_must_be_accepted_by_name_before_anything_is_planned() -> None:
    listed = "[torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1]"
    with pytest.raises(ConfigError, match=r"vit_b_16.*licence swag.*accept_licences: \[swag\]"):
        plan_run(config(listed))
    check_licences(config(listed, "accept_licences: [swag]"))
    random_weights = "[{id: torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1, weights: none}]"
    check_licences(config(random_weights))  # the licence is of the weights, which are not used


def test_the_licence_of_a_librarys_code_binds_with_random_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlray.catalogue.libraries.timm.facts", lambda name, tag: {"licence": "AGPL-3.0"})
    asked = "[{id: timm/resnet10t, weights: none}]"
    with pytest.raises(ConfigError, match=r"AGPL-3\.0"):
        check_licences(config(asked))
    check_licences(config(asked, "accept_licences: [agpl-3.0]"))


def test_only_candidates_that_pass_the_other_filters_are_timed_the_smallest_first(monkeypatch, capsys) -> None:
    asked: list[str] = []

    def time_of(home: str, name: str, tag: str | None, *, size: int, batch_size: int) -> float:
        asked.append(name)
        assert batch_size == 4
        return 5.0 if name == "mobilenet_v3_small" else 50.0

    monkeypatch.setattr(select, "milliseconds", time_of)
    query = "{pattern: 'torchvision/mobilenet*', max_latency_ms: 20, batch_size: 4}"
    chosen = select_backbones(config(query)).chosen_backbones
    assert [backbone.id for backbone in chosen] == ["torchvision/mobilenet_v3_small.IMAGENET1K_V1"]
    assert asked == ["mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2"]  # once for both sets of weights
    said = capsys.readouterr().err
    assert "5.0 ms for 4 x 224 px on" in said
    assert "(3 of 3)" in said
    with pytest.raises(ConfigError, match=r"max_latency_ms 1: none .* batch of 4"):
        select_backbones(config(query.replace("20", "1")))


def test_a_latency_is_measured_once_for_a_device_and_a_batch_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batches: list[tuple[int, ...]] = []

    class Model(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert torch.is_inference_mode_enabled()
            batches.append(tuple(images.shape))
            return images

    class FakeLibrary:
        def construct(self, name: str, tag: Any, source: str, *_: Any) -> nn.Module:
            assert source == "none"  # nothing is downloaded
            return Model()

        def preprocessing(self, name: str, tag: str | None) -> Preprocessing:
            raise AssertionError

    monkeypatch.setattr(latency, "library", lambda home: FakeLibrary())
    first = latency.milliseconds("timm", "some", None, size=32, batch_size=2)
    assert first > 0
    assert set(batches) == {(2, 3, 32, 32)}
    assert len(batches) == latency.WARM_UP + latency.RUNS
    assert latency.milliseconds("timm", "some", None, size=32, batch_size=2) == first
    assert len(batches) == latency.WARM_UP + latency.RUNS
    (file,) = (tmp_path / "tlray" / "latency").iterdir()
    assert json.loads(file.read_text())["device"] == latency.device_name()
    latency.milliseconds("timm", "some", None, size=32, batch_size=3)
    file.write_text("{")
    latency.milliseconds("timm", "some", None, size=32, batch_size=2)
    assert len(batches) == 3 * (latency.WARM_UP + latency.RUNS)
