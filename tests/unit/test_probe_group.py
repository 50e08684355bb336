"""A group of linear probes leaves what its trials leave when they are trained one by one, also when it is killed."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tlray.backbone import Backbone
from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.loader import Batch, Streams, load_draws
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.order import evaluation_steps, train_steps
from tlray.data.transforms import normalise
from tlray.errors import TrialError
from tlray.results import TrialResult, read_trial_result, write_trial_result
from tlray.split import find_cut, frozen_prefix
from tlray.training import probe_group, probe_loop
from tlray.training.probe_group import run_probe_group
from tlray.training.trial import TrialImages, load_trained, manifest_images, run_trial
from tlray.training.worker import EpochMetrics, Worker, local_worker

NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)
MIX: tuple[dict[str, object], ...] = (
    {"lr": 0.003},
    {"lr": 0.3, "patience": 2, "schedule": "constant"},
    {"lr": 0.01, "weight_decay": 0.3, "label_smoothing": 0.1, "warmup_epochs": 1.5},
    {"lr": 0.02, "gradient_clip": 0.05, "head_lr_mult": 3.0, "epochs": 3, "momentum": 0.5},
    {"lr": 1e-6, "patience": 1},
)
TOLERANCE = 1e-6  # of float32 sums in another order
DIFFERS = {"seconds": 0, "peak_memory_bytes": 0}
Curves = dict[str, list[EpochMetrics]]


def make_trials(network: BackboneConfig = NETWORK, mix: Sequence[dict[str, object]] = MIX, **shared: object) -> list:
    usual = {"epochs": 5, "batch_size": 8, "augmentation": "none", **shared}
    return [
        TrialConfig(
            trial_id=f"t{index}",
            backbone=network,
            strategy=StrategyConfig(strategy="linear_probe"),
            recipe=Recipe.model_validate({**usual, **fields}),
            seed=0,
        )
        for index, fields in enumerate(mix)
    ]


@pytest.fixture(scope="module")
def manifest(image_folder: Path) -> Manifest:
    return make_manifest(DataConfig(train=str(image_folder), val_fraction=0.25, test_fraction=0.25), 0)


def live_images(manifest: Manifest) -> TrialImages:
    return manifest_images(manifest, DataConfig(train="unused"))


def activation_images(manifest: Manifest, dtype: torch.dtype = torch.float16) -> TrialImages:
    """What the store would give: the features of the real prefix, in the order of the images' own streams."""

    @cache
    def features(name: str, split: str) -> tuple[torch.Tensor, ...]:
        return computed[name, split]

    computed: dict[tuple[str, str], tuple[torch.Tensor, ...]] = {}

    def open_activations(backbone: Backbone, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams:
        prefix = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])
        for split in ("train", "val", "test"):
            if (backbone.id, split) not in computed:
                draws = load_draws(manifest.split(split), backbone.preprocessing, "none", 0, num_threads=1)
                (values,) = prefix(normalise(torch.stack(list(draws)), backbone.preprocessing))
                computed[backbone.id, split] = tuple(value.to(dtype) for value in values)

        def batches(split: str, steps: Sequence[np.ndarray]) -> Iterator[Batch]:
            labels = torch.tensor([image.label for image in manifest.split(split)])
            for step in steps:
                rows = torch.as_tensor(step, dtype=torch.int64)
                inputs = tuple(value[rows] for value in features(backbone.id, split))
                yield Batch(inputs, labels[rows], rows, len(rows))

        def train(epoch: int) -> Iterator[Batch]:
            return batches("train", train_steps(sizes["train"], trial.recipe.batch_size, trial.seed, epoch))

        def evaluation(split: str) -> Iterator[Batch]:
            return batches(split, evaluation_steps(sizes[split], trial.recipe.batch_size, 0, 1)[0])

        sizes = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
        counts = {f"num_{split}": size for split, size in sizes.items()}
        return Streams(None, train, partial(evaluation, "val"), partial(evaluation, "test"), **counts)

    charged = {"t0": 36}
    return dataclasses.replace(live_images(manifest), open_activations=open_activations, charged_images=charged)


def run_group(trials: Sequence[TrialConfig], folder: Path, images: TrialImages) -> tuple[list[TrialResult], Curves]:
    curves: Curves = {}
    rows = run_probe_group(
        trials, str(folder), local_worker(), images, lambda trial_id, m: curves.setdefault(trial_id, []).append(m)
    )
    return rows, curves


def run_one_by_one(
    trials: Sequence[TrialConfig], folder: Path, images: TrialImages
) -> tuple[list[TrialResult], Curves]:
    curves: Curves = {trial.trial_id: [] for trial in trials}
    rows = []
    for trial in trials:
        row = run_trial(trial, str(folder), local_worker(), images, curves[trial.trial_id].append)
        assert row is not None
        rows.append(row)
    return rows, curves


def assert_same_curve(ours: Sequence[EpochMetrics], theirs: Sequence[EpochMetrics], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=tolerance)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=tolerance)
        assert mine.val_macro_f1 == pytest.approx(other.val_macro_f1, abs=1e-12)
        exact = ("epoch", "lr", "val_accuracy", "val_top5_accuracy")
        assert [getattr(mine, name) for name in exact] == [getattr(other, name) for name in exact]


def assert_same_row(ours: TrialResult, theirs: TrialResult, ignore: Sequence[str] = ()) -> None:
    mine, other = ours.model_dump(), theirs.model_dump()
    for fields in (mine, other):
        fields["checkpoint"] = fields["checkpoint"].rpartition("/")[2]
    for name in (*DIFFERS, *ignore):
        del mine[name], other[name]
    assert mine.pop("val_loss") == pytest.approx(other.pop("val_loss"), rel=2e-5 if ignore else TOLERANCE)
    assert mine == pytest.approx(other) if ignore else mine == other


def assert_same_folder(ours: Path, theirs: Path, tolerance: float = TOLERANCE) -> None:
    """The best checkpoint, the curve and the predictions; a trial trained alone has its last checkpoint too."""
    checkpoints = [path.name for path in ours.glob("epoch-*.safetensors")]
    assert checkpoints == [f"epoch-{json.loads((theirs / 'progress.json').read_text())['best_epoch']:04d}.safetensors"]
    mine, other = load_file(ours / checkpoints[0]), load_file(theirs / checkpoints[0])
    assert mine.keys() == {key for key in other if key.startswith("model/")}
    head, expected = (torch.cat([side[key].flatten() for key in mine]) for side in (mine, other))
    assert float((head - expected).norm() / expected.norm()) <= tolerance
    assert len((ours / "history.jsonl").read_text().splitlines()) == len(
        (theirs / "history.jsonl").read_text().splitlines()
    )
    predictions = [pq.read_table(folder / "test_predictions.parquet").to_pydict() for folder in (ours, theirs)]
    confidence = [table.pop("confidence") for table in predictions]
    assert predictions[0] == predictions[1]
    assert confidence[0] == pytest.approx(confidence[1], rel=10 * tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_group_ends_like_its_trials_one_by_one(
    optimizer: str, dtype: torch.dtype, manifest: Manifest, tmp_path: Path
) -> None:
    images = activation_images(manifest, dtype)
    trials = make_trials(optimizer=optimizer)
    theirs, their_curves = run_one_by_one(trials, tmp_path / "alone", images)
    ours, our_curves = run_group(trials, tmp_path / "group", images)
    assert len({row.epochs for row in theirs}) > 1, "some rows should end before others"
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        name = trial.trial_id
        assert mine.status == "completed"
        assert_same_row(mine, other)
        assert_same_curve(our_curves[name], their_curves[name], TOLERANCE)
        assert_same_folder(tmp_path / "group" / "trials" / name, tmp_path / "alone" / "trials" / name)
        assert read_trial_result(str(tmp_path / "group"), name) == mine
    assert [row.prefix_images_computed for row in ours] == [36, 0, 0, 0, 0]
    assert not list((tmp_path / "group" / "groups").rglob("*.*"))


# the heads that are mapped over the rows, and dropout: equal seeds draw equal masks
@pytest.mark.parametrize(("network", "size"), [("torchvision/squeezenet1_0", 64), ("torchvision/mobilenet_v2", 32)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_heads_and_dropout_end_like_trials_one_by_one_too(
    network: str, size: int, optimizer: str, manifest: Manifest, tmp_path: Path
) -> None:
    config = BackboneConfig(id=network, weights="none", input_size=size)
    images = activation_images(manifest)
    trials = make_trials(config, MIX[2:4], epochs=3, optimizer=optimizer)
    theirs, their_curves = run_one_by_one(trials, tmp_path / "alone", images)
    ours, our_curves = run_group(trials, tmp_path / "group", images)
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        assert_same_row(mine, other)
        assert_same_curve(our_curves[trial.trial_id], their_curves[trial.trial_id], TOLERANCE)
        folders = [tmp_path / kind / "trials" / trial.trial_id for kind in ("group", "alone")]
        assert_same_folder(folders[0], folders[1])


def test_a_group_ends_like_trials_that_read_images(manifest: Manifest, tmp_path: Path) -> None:
    """Within 2e-5: the prefix adds in another order for batches of another size."""
    trials = make_trials()
    theirs, their_curves = run_one_by_one(trials, tmp_path / "live", live_images(manifest))
    ours, our_curves = run_group(trials, tmp_path / "group", activation_images(manifest, torch.float32))
    for trial, mine, other in zip(trials, ours, theirs, strict=True):
        assert_same_curve(our_curves[trial.trial_id], their_curves[trial.trial_id], 2e-5)
        assert (mine.best_epoch, mine.test_accuracy) == (other.best_epoch, other.test_accuracy)


def assert_equal_runs(ours: Path, theirs: Path, trials: Sequence[TrialConfig]) -> None:
    """Bit for bit, but for what tells of time and memory."""
    for trial in trials:
        mine, other = (read_trial_result(str(run), trial.trial_id) for run in (ours, theirs))
        assert mine is not None
        assert other is not None
        assert mine.checkpoint is not None
        update = {**DIFFERS, "checkpoint": None}
        assert mine.model_copy(update=update) == other.model_copy(update=update)
        name = mine.checkpoint.rpartition("/")[2]
        tensors = [load_file(run / "trials" / trial.trial_id / name) for run in (ours, theirs)]
        assert all(tensor.equal(tensors[1][key]) for key, tensor in tensors[0].items())
        curves = []
        for run in (ours, theirs):
            lines = (run / "trials" / trial.trial_id / "history.jsonl").read_text().splitlines()
            curves.append([{**json.loads(line), "seconds": 0, "images_per_second": 0} for line in lines])
        assert curves[0] == curves[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_group_killed_at_any_epoch_ends_bit_for_bit_like_an_undisturbed_one(
    optimizer: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials(optimizer=optimizer)
    run_group(trials, tmp_path / "whole", images)
    monkeypatch.setattr(probe_loop, "COMMIT_SECONDS", 0.0)
    run = tmp_path / "killed"
    begun = []
    for epoch in (1, 3, 5):

        def report(trial_id: str, metrics: EpochMetrics, epoch: int = epoch) -> None:
            begun.append(metrics.epoch)
            if metrics.epoch == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_probe_group(trials, str(run), local_worker(), images, report)
        states = list((run / "groups" / "t0").glob("state-*"))
        assert len(states) == 1, "the state before is dropped"
    _, curves = run_group(trials, run, images)
    assert curves == {}, "all that was left was to write the rows"
    assert sorted(set(begun)) == [1, 2, 3, 4, 5]
    assert begun.count(1) == 1, "no epoch is trained twice"
    assert_equal_runs(run, tmp_path / "whole", trials)


def test_a_group_killed_between_two_commits_repeats_what_came_after_the_last_one(
    manifest: Manifest, tmp_path: Path
) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "whole", images)

    def report(trial_id: str, metrics: EpochMetrics) -> None:
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe_group(trials, str(tmp_path / "killed"), local_worker(), images, report)
    run_group(trials, tmp_path / "killed", images)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole", trials)


def test_a_group_killed_while_it_writes_rows_trains_nothing_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "whole", images)
    run = tmp_path / "killed"

    def write_predictions(folder_uri: str, *arguments: Any) -> Any:
        if folder_uri.endswith("t3"):
            raise KeyboardInterrupt
        return original(folder_uri, *arguments)

    original = probe_group.write_predictions
    with monkeypatch.context() as patch:
        patch.setattr(probe_group, "write_predictions", write_predictions)
        with pytest.raises(KeyboardInterrupt):
            run_group(trials, run, images)
    assert read_trial_result(str(run), "t1") is not None
    unfinished = [trial for trial in trials if read_trial_result(str(run), trial.trial_id) is None]
    assert unfinished[0] is trials[0], "the group's checkpoint goes by the first trial's name"
    _, curves = run_group(unfinished, run, images)  # a resume asks for what has no row
    assert curves == {}
    assert_equal_runs(run, tmp_path / "whole", trials)
    assert not list((run / "groups").rglob("*.*"))


def test_a_group_is_resumed_with_the_rows_that_are_asked_for(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its trials, in another order, and one that it did not hold."""
    images, trials = activation_images(manifest), make_trials()
    monkeypatch.setattr(probe_loop, "COMMIT_SECONDS", 0.0)

    def report(trial_id: str, metrics: EpochMetrics) -> None:
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe_group(trials[:4], str(tmp_path / "killed"), local_worker(), images, report)
    asked = [trials[index] for index in (0, 4, 2, 1)]
    rows, curves = run_group(asked, tmp_path / "killed", images)
    assert [row.trial_id for row in rows] == ["t0", "t4", "t2", "t1"]
    assert [metrics.epoch for metrics in curves["t0"]] == [metrics.epoch for metrics in curves["t2"]] == [4, 5]
    assert curves["t4"][0].epoch == 1
    theirs, _ = run_one_by_one(asked, tmp_path / "alone", images)
    for mine, other in zip(rows, theirs, strict=True):
        assert_same_row(mine, other)


def test_a_row_that_diverges_fails_as_it_would_alone_and_the_others_do_not_notice(
    manifest: Manifest, tmp_path: Path
) -> None:
    images = activation_images(manifest)
    wild = {"lr": 1e38, "schedule": "constant", "label_smoothing": 0.1, "gradient_clip": 1e30}
    trials = make_trials(mix=[MIX[0], wild, MIX[2], {**wild, "lr": 3e37}], optimizer="sgd")
    rows, curves = run_group(trials, tmp_path / "group", images)
    with pytest.raises(TrialError) as alone:
        run_one_by_one(trials[1:2], tmp_path / "alone", images)
    assert (rows[1].status, rows[1].error) == ("failed", str(alone.value))
    assert read_trial_result(str(tmp_path / "group"), "t1") == rows[1]
    assert rows[3].status == "failed"
    assert not list((tmp_path / "group" / "trials" / "t1").glob("epoch-*"))
    theirs, their_curves = run_one_by_one([trials[0], trials[2]], tmp_path / "alone", images)
    for index, other in zip((0, 2), theirs, strict=True):
        assert_same_row(rows[index], other)
        assert_same_curve(curves[f"t{index}"], their_curves[f"t{index}"], TOLERANCE)


def test_a_group_of_which_every_row_diverges_is_rows_with_reasons(manifest: Manifest, tmp_path: Path) -> None:
    trials = make_trials(mix=[{"lr": 1e38}, {"lr": 3e38}], optimizer="sgd", schedule="constant")
    rows, _ = run_group(trials, tmp_path, activation_images(manifest))
    assert [row.status for row in rows] == ["failed", "failed"]
    assert all("diverged: the training loss of epoch" in (row.error or "") for row in rows)


def test_a_trial_that_has_a_row_keeps_it_and_one_that_failed_is_trained_again(
    manifest: Manifest, tmp_path: Path
) -> None:
    images, trials = activation_images(manifest), make_trials()
    first, _ = run_group(trials, tmp_path, images)
    failed = TrialResult(
        trial_id="t2", backbone="b", weights="none", strategy="s", params={}, seed=0, status="failed", error="killed"
    )
    write_trial_result(str(tmp_path), failed)
    again, curves = run_group(trials, tmp_path, images)
    assert set(curves) == {"t2"}
    assert [row for row in again if row.trial_id != "t2"] == [row for row in first if row.trial_id != "t2"]
    assert_same_row(again[2], first[2])


def test_memory_limits_split_a_group_and_its_test_logits_without_changing_a_row(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trials = activation_images(manifest), make_trials()
    whole, _ = run_group(trials, tmp_path / "whole", images)
    monkeypatch.setattr(probe_group, "LARGEST_STACK", 2 * 5 * 4 * (whole[0].num_trainable_params or 0))  # two heads
    monkeypatch.setattr(probe_group, "LARGEST_LOGITS", 1)
    parts, _ = run_group(trials, tmp_path / "parts", images)
    for mine, other in zip(parts, whole, strict=True):
        assert_same_row(mine, other)


def test_heads_that_cannot_be_stacked_train_one_after_the_other(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = activation_images(manifest)
    trials = make_trials(mix=[MIX[0], {"lr": 1e38, "schedule": "constant"}], optimizer="sgd")
    monkeypatch.setattr(probe_group, "fusable_suffix", lambda backbone: "its classifier normalises by the batch")
    rows, curves = run_group(trials, tmp_path / "group", images)
    (alone,), their_curves = run_one_by_one(trials[:1], tmp_path / "alone", images)
    assert_same_row(rows[0], alone)
    assert_same_curve(curves["t0"], their_curves["t0"], 0.0)
    assert rows[1].status == "failed"


def test_a_trial_of_a_group_is_loaded_like_any_other(manifest: Manifest, tmp_path: Path) -> None:
    images, trials = activation_images(manifest), make_trials()
    run_group(trials, tmp_path / "group", images)
    run_one_by_one(trials[:2], tmp_path / "alone", images)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for trial in trials[:2]:
        models = [load_trained(trial, str(tmp_path / kind), images.num_classes).model for kind in ("group", "alone")]
        with torch.no_grad():
            torch.testing.assert_close(models[0](pixels), models[1](pixels), rtol=1e-5, atol=1e-5)


def test_the_seconds_of_the_rows_add_up_to_the_groups(manifest: Manifest, tmp_path: Path) -> None:
    rows, curves = run_group(make_trials(), tmp_path, activation_images(manifest))
    for row in rows:
        assert row.seconds == pytest.approx(sum(metrics.seconds for metrics in curves[row.trial_id]))
    first = [curve[0] for curve in curves.values()]
    assert len({metrics.seconds for metrics in first}) == 1
    assert first[0].images_per_second > 0
