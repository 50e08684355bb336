"""What the activation pass works on: pieces of what is missing, images decoded once, one failure not the others'."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tlray.activations.compute
from tlray.activations.chunks import Chunk, list_chunks
from tlray.activations.compute import compute_chunk
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.store import ActivationStore
from tlray.backbone import build_backbone
from tlray.config import BackboneConfig, RunConfig
from tlray.data.loader import load_draws
from tlray.plan import PlannedRun
from tlray.planning import plan_run

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
    images = {image.content_id: image for image in run.manifest.images}
    device = torch.device("cpu")
    return compute_chunk(chunk, images, store, num_classes=3, run="r", device=device, num_threads=1)


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
    drawn: list[int] = []

    def counted(images: list, *arguments: object, **options: object) -> object:
        drawn.append(len(images))
        return load_draws(images, *arguments, **options)

    monkeypatch.setattr(tlray.activations.compute, "load_draws", counted)
    outcome = compute(run, store, chunk)
    assert sum(drawn) == len(chunk.content_ids)
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
