"""What the activation pass works on: pieces of what is missing, images decoded once, one failure not the others'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from activation_samples import image_ids, values_of
from safetensors.torch import save_file

import tlray.activations.compute
from tlray.activations.chunks import Chunk, list_chunks
from tlray.activations.compute import PassSettings, compute_chunk, compute_chunks
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.shard import serialise
from tlray.activations.shard_image import ShardImage
from tlray.activations.store import ActivationStore
from tlray.config import BackboneConfig, RunConfig
from tlray.data.images import Image
from tlray.data.load import load_image
from tlray.models.backbone import build_backbone
from tlray.planning.planner import plan_run
from tlray.runs.plan import PlannedRun

NETWORKS = ["timm/test_resnet", "timm/test_vit"]


def planned(image_folder: Path, tmp_path: Path, **fields: object) -> tuple[PlannedRun, ActivationStore]:
    config = RunConfig.model_validate(
        {
            "name": "test",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(image_folder), "val_fraction": 0.25, "test_fraction": 0.25},
            "backbones": [{"id": name, "weights": "none", "input_size": 32} for name in NETWORKS],
            "strategies": ["linear_probe", {"strategy": "partial", "trainable_blocks": 1}],
            "training": {"augmentation": "none"},
            "activations": {"materialise": "always"},
            "baseline": {"backbone": {"id": "timm/test_resnet", "weights": "none", "input_size": 32}},
            **fields,
        }
    )
    run = plan_run(config)
    return run, open_store(run.config)


def chunks_of(run: PlannedRun, store: ActivationStore, images_per_shard: int = 512) -> list[Chunk]:
    sources = run.plan.activations
    return list_chunks(sources, run.manifest, store, images_per_shard=images_per_shard, num_workers=1)


def compute(run: PlannedRun, store: ActivationStore, chunk: Chunk) -> tlray.activations.compute.ChunkOutcome:
    settings = PassSettings(num_classes=3, run="r", device=torch.device("cpu"), num_threads=1)
    return compute_chunk(chunk, run.manifest.find, store, settings)


def test_every_image_is_in_one_chunk_with_all_that_misses_it(image_folder: Path, tmp_path: Path) -> None:
    run, store = planned(image_folder, tmp_path)
    chunks = chunks_of(run, store, images_per_shard=5)
    ids = [content_id for chunk in chunks for content_id in chunk.content_ids]
    assert sorted(ids) == sorted({image.content_id for image in run.manifest.images})
    assert max(len(chunk.content_ids) for chunk in chunks) == 5
    for chunk in chunks:
        wanted = {(one.backbone.id, len(one.keys)) for draw in chunk.draws for one in draw.wanted}
        assert wanted == {("timm/test_resnet", 2), ("timm/test_vit", 2)}


def test_images_that_a_store_holds_are_in_no_chunk(image_folder: Path, tmp_path: Path) -> None:
    run, store = planned(image_folder, tmp_path)
    first, *others = chunks_of(run, store, images_per_shard=5)
    assert compute(run, store, first).num_forwards == first.num_forwards
    assert chunks_of(run, store, images_per_shard=5) == others


def test_backbones_that_see_an_image_alike_share_its_decoding(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    twins = [{**network, "options": {"drop_rate": rate}} for rate in (0.0, 0.1)]
    run, store = planned(image_folder, tmp_path, backbones=twins)
    (chunk, *_) = chunks_of(run, store)
    drawn: list[str] = []

    def counted(image: Image, **options: Any) -> torch.Tensor:
        drawn.append(image.content_id)
        return load_image(image, **options)

    monkeypatch.setattr(tlray.activations.compute, "load_image", counted)
    outcome = compute(run, store, chunk)
    assert sorted(drawn) == sorted(chunk.content_ids)
    assert outcome.num_forwards == 2 * len(chunk.content_ids)


def test_a_chunk_begun_again_computes_only_what_no_shard_holds(image_folder: Path, tmp_path: Path) -> None:
    run, store = planned(image_folder, tmp_path)
    (chunk, *_) = chunks_of(run, store)
    compute(run, store, chunk)
    lost = ActivationKey(**run.plan.activations[0].keys[0])
    for entry in (Path(store.uri) / lost.digest / "index").iterdir():
        entry.unlink()
    again = compute(run, store, chunk)
    assert again.num_forwards == len(chunk.content_ids)  # of one backbone
    assert store.missing(lost, chunk.content_ids) == []


def test_activations_beyond_float16_fail_their_backbone_alone_and_name_the_remedy(
    image_folder: Path, tmp_path: Path
) -> None:
    network = {"id": "timm/test_vit", "weights": "none", "input_size": 32}
    model = build_backbone(BackboneConfig.model_validate(network), 3).model
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key in state:
        if key.startswith("norm."):  # the last one, which nothing normalises again
            state[key] = state[key] * 1e7 + 1e5
    weights = tmp_path / "large.safetensors"
    save_file(state, weights, {"library": "timm", "arch": "test_vit"})
    backbones = [{**network, "weights": str(weights)}, {**network, "id": "timm/test_resnet"}]
    run, store = planned(image_folder, tmp_path, backbones=backbones, strategies=["linear_probe"])
    for chunk in chunks_of(run, store):
        outcome = compute(run, store, chunk)
        assert list(outcome.failures) == ["timm/test_vit"]
        assert "activations.dtype=float32" in outcome.failures["timm/test_vit"]
    left = chunks_of(run, store)
    assert {one.backbone.id for chunk in left for draw in chunk.draws for one in draw.wanted} == {"timm/test_vit"}
    assert json.loads(left[0].draws[0].preprocessing)["input_size"] == [32, 32]


def test_chunks_computed_behind_each_other_are_the_shards_of_chunks_computed_alone(
    image_folder: Path, tmp_path: Path
) -> None:
    run, store = planned(image_folder, tmp_path, training={"augmentation": "light", "views": 2})
    chunks = chunks_of(run, store, images_per_shard=5)
    settings = PassSettings(num_classes=3, run="r", device=torch.device("cpu"), num_threads=3)
    ended = list(compute_chunks(chunks, run.manifest.find, store, settings))
    assert [chunk for chunk, _ in ended] == chunks
    assert [outcome.num_forwards for _, outcome in ended] == [chunk.num_forwards for chunk in chunks]
    alone = ActivationStore(str(tmp_path / "alone"), cache=str(tmp_path / "cache"))
    for chunk in chunks:
        compute(run, alone, chunk)
    for source in run.plan.activations:
        for key in (ActivationKey(**fields) for fields in source.keys):
            ours, theirs = ({shard.id: shard.sha256 for shard in one.index(key).entries} for one in (store, alone))
            assert ours == theirs != {}


@pytest.mark.parametrize("shapes", [[(6,)], [(6,), (2, 3, 3)]])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shard_filled_in_place_is_the_file_that_is_made_of_arrays(dtype: str, shapes: list[tuple[int, ...]]) -> None:
    values = values_of(image_ids(7), shapes, dtype)
    image = ShardImage(dtype, 7, shapes, torch.device("cpu"))
    for place, value in zip(image.values, values, strict=True):
        place[:4].copy_(torch.from_numpy(value[:4]))
        place[4:].copy_(torch.from_numpy(value[4:]))
    assert bytes(image.data) == serialise(values)
