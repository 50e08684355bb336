"""A trial's folder: what a kill at any moment leaves behind, and that a resumed training is the undisturbed one."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tlray.config import Recipe
from tlray.errors import TrialError
from tlray.models.freeze import hash_tensors
from tlray.runs.notes import read_notes
from tlray.training.checkpoint import TrialFolder, pack, unpack_model, unpack_optimizer
from tlray.training.epoch import EpochMetrics
from tlray.training.loop import is_done
from tlray.training.record import Progress


def metrics(epoch: int, val_accuracy: float, val_loss: float = 1.0) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.0,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        val_top5_accuracy=1.0,
        val_macro_f1=val_accuracy,
        lr=0.1,
        seconds=1.0,
        images_per_second=10.0,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_progress_survives_the_way_to_disk_and_back(tmp_path: Path) -> None:
    folder = TrialFolder(str(tmp_path))
    assert folder.load_progress() == Progress()
    progress = Progress(images_seen=7, seconds=1.5).after(metrics(1, 0.5), 100).after(metrics(2, 0.25), 100)
    folder.save(progress, {"model/w": torch.ones(2)}, "hash")
    loaded = folder.load_progress()
    assert dataclasses.replace(loaded, files={}) == progress
    assert set(loaded.files) == {"epoch-0002.safetensors"}
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("accuracies", "num_val", "best"),
    [
        ((0.5, 0.8, 0.79, 0.75), 100, 3),  # one standard error of 0.8 is 0.0402: the last is 0.05 below
        ((0.5, 0.8, 0.79, 0.77), 100, 4),
        ((0.5, 0.8, 0.79, 0.77), 10_000, 2),  # 0.004
        ((1.0, 0.99), 100, 1),  # 0.0098, an image right and one wrong added
        ((1.0, 1.0), 100, 2),
        ((0.8, 0.3, 0.4, 0.5), 100, 1),
        ((0.5, 0.6, 0.7, 0.8), 100, 4),
    ],
)
def test_the_best_epoch_is_the_latest_within_one_standard_error_of_the_highest_accuracy(
    accuracies: tuple[float, ...], num_val: int, best: int
) -> None:
    progress = Progress()
    for epoch, accuracy in enumerate(accuracies, start=1):
        progress = progress.after(metrics(epoch, accuracy), num_val)
    assert progress.best_epoch == best


def test_patience_counts_from_the_highest_accuracy_and_not_from_the_best_epoch() -> None:
    progress = Progress()
    for epoch, accuracy in enumerate((0.5, 0.8, 0.79, 0.79), start=1):
        progress = progress.after(metrics(epoch, accuracy), 100)
    assert progress.best_epoch == 4
    assert progress.peak.epoch == 2
    assert is_done(progress, Recipe(epochs=9, patience=2))
    assert not is_done(progress, Recipe(epochs=9, patience=3))
    assert not is_done(progress, Recipe(epochs=9))


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    folder, progress = TrialFolder(str(tmp_path)), Progress()
    for epoch, accuracy in enumerate([0.5, 0.7, 0.6, 0.65, 0.6], start=1):
        progress = progress.after(metrics(epoch, accuracy), 100)
        folder.save(progress, {"model/w": torch.full((2,), float(epoch))}, "hash")
    kept = {f"epoch-000{epoch}.safetensors" for epoch in (2, 4, 5)}
    assert names(tmp_path) == {*kept, "history.jsonl", "progress.json"}
    for epoch in (2, 5):
        assert folder.load_tensors(folder.load_progress(), epoch, "hash")["model/w"].tolist() == [epoch, epoch]


def test_a_kill_between_checkpoint_and_progress_goes_back_one_epoch(tmp_path: Path) -> None:
    folder = TrialFolder(str(tmp_path))
    first = Progress().after(metrics(1, 0.5), 100)
    folder.save(first, {"model/w": torch.ones(1)}, "hash")
    before = (tmp_path / "progress.json").read_bytes()
    folder.save(first.after(metrics(2, 0.4), 100), {"model/w": torch.zeros(1)}, "hash")
    (tmp_path / "progress.json").write_bytes(before)  # as if the process had died before its last write
    folder.go_back()
    progress = folder.load_progress()
    assert progress.history == first.history
    assert not (tmp_path / "epoch-0002.safetensors").exists(), "what nothing names is removed"
    assert folder.load_tensors(progress, 1, "hash")["model/w"].tolist() == [1.0]
    assert read_notes(str(tmp_path.parent.parent)) == ()


def test_a_checkpoint_over_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    folder = TrialFolder(str(tmp_path))
    folder.save(Progress().after(metrics(1, 0.5), 100), {"model/w": torch.ones(1)}, "the weights of then")
    with pytest.raises(TrialError, match="other frozen weights"):
        folder.load_tensors(folder.load_progress(), 1, "the weights of now")


def test_the_hash_sees_every_value_name_and_type() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    keys = list(model.state_dict())
    before = hash_tensors(model, keys)
    assert hash_tensors(copy.deepcopy(model), reversed(keys)) == before
    assert hash_tensors(model, keys[1:]) != before
    with torch.no_grad():
        model[1].running_mean[1] += 1e-6
    assert hash_tensors(model, keys) != before


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_packed_model_and_optimizer_continue_exactly_as_the_originals(
    tmp_path: Path, kind: type[torch.optim.Optimizer]
) -> None:
    arguments = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        return model, kind([p for p in model.parameters() if p.requires_grad], lr=0.1, **arguments)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            images = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()

    whole, optimizer = start()
    changing = [key for key in whole.state_dict() if not key.startswith("0.")]
    steps(whole, optimizer, range(3))
    folder = TrialFolder(str(tmp_path))
    folder.save(Progress().after(metrics(1, 0.5), 100), pack(whole, optimizer, changing), "hash")
    steps(whole, optimizer, range(3, 6))

    resumed, fresh = start()
    tensors = folder.load_tensors(folder.load_progress(), 1, "hash")
    unpack_model(resumed, tensors)
    unpack_optimizer(fresh, tensors)
    steps(resumed, fresh, range(3, 6))
    for key, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], expected), key
