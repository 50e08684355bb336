"""From bytes to the GPU and back: the same images, activations and scores as on a CPU, in the same order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tlray.activations.chunks import list_chunks
from tlray.activations.compute import PassSettings, compute_chunk, compute_chunks
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.store import ActivationStore
from tlray.config import BackboneConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.data.batch import Batch
from tlray.data.loader import make_streams
from tlray.data.manifest import Manifest
from tlray.data.to_device import on_device
from tlray.inference.classify import faster
from tlray.models.backbone import build_backbone
from tlray.planning.planner import plan_run
from tlray.planning.speed.steps import measure_steps
from tlray.process.device import fastest, given_device, gpu_bytes, num_gpus, start_seconds, withhold_gpus
from tlray.runs.plan import PlannedRun
from tlray.training.activations import activation_streams
from tlray.training.commits import snapshot
from tlray.training.metrics import ClassificationSums
from tlray.training.probe_metrics import StackedSums
from tlray.training.worker import Worker, local_worker

pytestmark = pytest.mark.gpu
NETWORKS = ["timm/test_resnet", "timm/test_vit"]


def batches(sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, size in enumerate(sizes):
        pixels = torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator)
        made.append(Batch((pixels,), torch.full((size,), number), torch.arange(size), size))
    return made


@pytest.mark.parametrize("sizes", [[4, 4, 3], [1], [], [5] * 40])
def test_batches_come_to_the_gpu_in_order_and_whole(sizes: list[int], gpu: torch.device) -> None:
    host = batches(sizes)
    there = list(on_device(iter(host), gpu))
    assert len(there) == len(host)
    for ours, theirs in zip(there, host, strict=True):
        assert ours.inputs[0].is_cuda
        assert ours.inputs[0].cpu().equal(theirs.inputs[0])
        assert ours.labels.cpu().equal(theirs.labels)
        assert ours.rows.equal(theirs.rows)


def test_work_that_is_slow_on_the_gpu_never_sees_the_next_batchs_pixels(gpu: torch.device) -> None:
    host = batches([64] * 30)
    sums = []
    for batch in on_device(iter(host), gpu):
        torch.cuda._sleep(2_000_000)
        sums.append(batch.inputs[0].to(torch.int64).sum())
    assert torch.stack(sums).tolist() == [int(batch.inputs[0].to(torch.int64).sum()) for batch in host]


@pytest.mark.parametrize("augmentation", ["none", "light", "standard"])
def test_images_on_the_gpu_are_those_of_the_plain_loader(
    augmentation: str, manifest: Manifest, gpu: torch.device
) -> None:
    preprocessing = build_backbone(BackboneConfig(id=NETWORKS[0], weights="none", input_size=32), 3).preprocessing
    options: dict[str, Any] = {"batch_size": 7, "augmentation": augmentation, "seed": 3, "memory_cache_mb": 0}
    plain = make_streams(manifest, preprocessing, num_threads=1, **options)
    pinned = make_streams(manifest, preprocessing, num_threads=4, device=gpu, **options)
    for ours, theirs in zip(on_device(pinned.train(2), gpu), plain.train(2), strict=True):
        assert ours.inputs[0].cpu().equal(theirs.inputs[0])
        assert ours.labels.cpu().equal(theirs.labels)


@pytest.fixture
def planned(image_folder: Path, tmp_path: Path) -> Any:
    def plan(**fields: object) -> tuple[PlannedRun, ActivationStore, list]:
        config = RunConfig.model_validate(
            {
                "name": "test",
                "storage": str(tmp_path / "runs"),
                "data": {"train": str(image_folder), "val_fraction": 0.25, "test_fraction": 0.25},
                "backbones": [{"id": name, "weights": "none", "input_size": 32} for name in NETWORKS],
                "strategies": ["linear_probe", {"strategy": "partial", "trainable_blocks": 1}],
                "training": {"augmentation": "none"},
                "activations": {"materialise": "always", "precision": "float32", "dtype": "float32"},
                "baseline": {"backbone": {"id": NETWORKS[0], "weights": "none", "input_size": 32}},
                **fields,
            }
        )
        run = plan_run(config)
        store = open_store(run.config)
        sources = run.plan.activations
        return run, store, list_chunks(sources, run.manifest, store, images_per_shard=5, num_workers=1)

    return plan


def settings(device: torch.device) -> PassSettings:
    return PassSettings(num_classes=3, run="r", device=device, num_threads=4)


def keys_of(run: PlannedRun) -> list[ActivationKey]:
    return [ActivationKey(**fields) for source in run.plan.activations for fields in source.keys]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 5e-3), ("bfloat16", 5e-2), ("float16", 1e-2)])
def test_activations_computed_on_a_gpu_are_those_of_a_cpu(
    precision: str, tolerance: float, planned: Any, gpu: torch.device, tmp_path: Path
) -> None:
    """float32 convolves in TF32. Relative to the largest of an image's numbers."""
    fields = {"materialise": "always", "precision": precision, "dtype": "float32"}
    run, store, chunks = planned(activations=fields)
    for _ in compute_chunks(chunks, run.manifest.find, store, settings(gpu)):
        pass
    other = ActivationStore(str(tmp_path / "cpu"), cache=str(tmp_path / "cache"))
    for _ in compute_chunks(chunks, run.manifest.find, other, settings(torch.device("cpu"))):
        pass
    ids = [image.content_id for image in run.manifest.split("train")]
    for key in keys_of(run):
        mine, expected = (one.reader(key, ids).read(np.arange(len(ids))) for one in (store, other))
        for ours, theirs in zip(mine, expected, strict=True):
            assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def test_chunks_behind_each_other_are_the_shards_of_chunks_alone_to_the_bit(
    planned: Any, gpu: torch.device, tmp_path: Path
) -> None:
    run, store, chunks = planned()
    torch.backends.cudnn.deterministic = True
    try:
        ended = [chunk for chunk, _ in compute_chunks(chunks, run.manifest.find, store, settings(gpu))]
        other = ActivationStore(str(tmp_path / "alone"), cache=str(tmp_path / "cache"))
        for chunk in chunks:
            compute_chunk(chunk, run.manifest.find, other, settings(gpu))
    finally:
        torch.backends.cudnn.deterministic = False
    assert ended == chunks
    for key in keys_of(run):
        ours, theirs = ({shard.id: shard.sha256 for shard in one.index(key).entries} for one in (store, other))
        assert ours == theirs != {}


def test_a_pass_killed_between_chunks_computes_the_rest_alone(planned: Any, gpu: torch.device) -> None:
    run, store, chunks = planned()
    computed = compute_chunks(chunks, run.manifest.find, store, settings(gpu))
    first, _ = next(computed)
    computed.close()
    assert all(store.missing(key, first.content_ids) == [] for key in keys_of(run))
    again = [outcome.num_forwards for _, outcome in compute_chunks(chunks, run.manifest.find, store, settings(gpu))]
    assert again[0] == 0
    assert sum(again) < sum(chunk.num_forwards for chunk in chunks)
    assert all(store.missing(key, chunk.content_ids) == [] for key in keys_of(run) for chunk in chunks)


def test_activations_beyond_float16_are_found_on_the_gpu(planned: Any, gpu: torch.device) -> None:
    run, store, chunks = planned(activations={"materialise": "always", "dtype": "float16"})
    normalise = torch.nn.functional.layer_norm

    def huge(*arguments: Any, **named: Any) -> torch.Tensor:
        return normalise(*arguments, **named) * 1e7

    torch.nn.functional.layer_norm = huge
    try:
        outcomes = [outcome for _, outcome in compute_chunks(chunks, run.manifest.find, store, settings(gpu))]
    finally:
        torch.nn.functional.layer_norm = normalise
    assert all(list(outcome.failures) == ["timm/test_vit"] for outcome in outcomes)


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_held_on_the_gpu_are_those_that_stream_in(network: str, planned: Any, worker: Worker) -> None:
    run, store, chunks = planned(training={"augmentation": "light", "views": 2})
    for _ in compute_chunks(chunks, run.manifest.find, store, settings(worker.device)):
        pass
    trial = next(t for t in run.trials if t.backbone.id == network and t.strategy.strategy == "partial")
    (source,) = [s for s in run.plan.activations if trial.trial_id in s.trials and s.backbone.id == network][:1]
    held = activation_streams(run.manifest, source, trial, worker, store, room=10**9)
    streamed = activation_streams(run.manifest, source, trial, worker, store, room=0)
    for epoch in (0, 1):
        for ours, theirs in zip(held.train(epoch), on_device(streamed.train(epoch), worker.device), strict=True):
            assert all(a.equal(b) for a, b in zip(ours.inputs, theirs.inputs, strict=True))
            assert ours.labels.equal(theirs.labels)
    for ours, theirs in zip(held.val(), on_device(streamed.val(), worker.device), strict=True):
        assert all(a.equal(b) for a, b in zip(ours.inputs, theirs.inputs, strict=True))


def test_sums_on_the_gpu_are_the_scores_of_a_cpu(gpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    there, here = ClassificationSums(7, gpu), ClassificationSums(7)
    stacked = StackedSums(3, 7, gpu)
    for rows in torch.arange(200).split(32):
        there.update(logits[rows].to(gpu), labels[rows].to(gpu))
        here.update(logits[rows], labels[rows])
        stacked.update(logits[rows, None, :].expand(-1, 3, -1).to(gpu), labels[rows].to(gpu))
    ours, theirs = there.result(), here.result()
    assert (ours.accuracy, ours.top5_accuracy, ours.macro_f1) == (
        theirs.accuracy,
        theirs.top5_accuracy,
        theirs.macro_f1,
    )
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert [scores.accuracy for scores in stacked.result()] == [theirs.accuracy] * 3


def test_a_snapshot_keeps_what_the_gpu_goes_on_to_change(gpu: torch.device) -> None:
    weights = torch.randn(64, 3, 7, 7, device=gpu).contiguous(memory_format=torch.channels_last)
    before = weights.cpu()
    torch.cuda._sleep(20_000_000)
    copies = snapshot({"w": weights})
    weights.zero_()
    kept = copies()["w"]
    assert kept.device.type == "cpu"
    assert kept.equal(before)


def test_a_process_that_was_given_no_gpu_uses_none(gpu: torch.device) -> None:
    withhold_gpus(True)
    try:
        assert local_worker().device.type == "cpu"
        assert num_gpus() == gpu_bytes() == 0
    finally:
        withhold_gpus(False)
    assert local_worker().device.type == "cuda"
    assert given_device(0).type == "cpu"


def test_the_plan_times_a_warm_prefix(image_folder: Path, planned: Any, gpu: torch.device) -> None:
    run, _, _ = planned()
    assert all(0 < source.prefix_seconds < 0.002 for source in run.plan.activations)


def test_a_step_is_timed_warm_and_says_how_busy_the_gpu_is(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = BackboneConfig(id="torchvision/resnet18", weights="none")
    trial = TrialConfig(
        trial_id="t", backbone=network, strategy=StrategyConfig(strategy="full"), recipe=Recipe(batch_size=64), seed=0
    )
    backbone = build_backbone(network, 3)
    step = measure_steps(backbone, trial, len(backbone.blocks), on_activations=False, num_threads=1)
    assert 0 < step.train < 0.002
    assert 0 < step.busy <= 1


def test_a_prediction_on_the_gpu_is_that_of_a_cpu(gpu: torch.device) -> None:
    network = BackboneConfig(id=NETWORKS[0], weights="none", input_size=32)
    images = torch.randn(9, 3, 32, 32)
    with torch.inference_mode():
        there = faster(build_backbone(network, 3, seed=0), gpu)(images.to(gpu)).softmax(1).cpu()
        here = faster(build_backbone(network, 3, seed=0), torch.device("cpu"))(images).softmax(1)
    torch.testing.assert_close(there, here, atol=2e-3, rtol=0)


def test_the_start_of_cuda_is_paid_once(gpu: torch.device) -> None:
    start_seconds(gpu)
    assert start_seconds(gpu) < 0.5
    assert fastest(lambda: None, gpu) < 0.01
