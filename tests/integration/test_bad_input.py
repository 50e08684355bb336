"""What is wrong with the user's input ends with exit code 2 and one clear line, before anything is trained."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tlray.cli import main
from tlray.data.splits import position

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `tlray run` on a good configuration with the given fields replaced -> the one line that refused it."""

    def call(*overrides: str, **fields: Any) -> str:
        network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
        config = {
            "name": "bad",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(image_folder)},
            "backbones": [network],
            "training": {"epochs": 1, "batch_size": 8},
            "baseline": {"backbone": network},
            **fields,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(SystemExit) as leaving:
            main(["run", str(tmp_path / "config.yaml"), *overrides])
        assert leaving.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert not list((tmp_path / "runs").rglob("config.yaml")), "a run folder was left behind"
        return lines[0]

    return call


@pytest.fixture
def classes(image_folder: Path, tmp_path: Path) -> Callable[[dict[str, int]], str]:
    """A folder with so many images of each class, copied from the small data set."""
    images = sorted(image_folder.rglob("*.jpg"))

    def make(counts: dict[str, int]) -> str:
        for name, count in counts.items():
            (tmp_path / "made" / name).mkdir(parents=True)
            for index in range(count):
                shutil.copy(images.pop(), tmp_path / "made" / name / f"{index}.jpg")
        return str(tmp_path / "made")

    return make


def test_a_misspelt_key_is_named_with_the_nearest_valid_one(refused: Refused) -> None:
    line = refused("training.epoch=3")
    assert "'epoch'" in line
    assert "did you mean 'epochs'" in line


def test_an_unknown_backbone_is_named_with_its_near_misses(refused: Refused) -> None:
    line = refused(backbones=["torchvision/resnet51"])
    assert "resnet51" in line
    assert "torchvision/resnet50" in line


def test_weights_of_another_architecture_are_refused_with_the_keys_that_differ(
    refused: Refused, tmp_path: Path
) -> None:
    save_file({"somewhere.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    backbone = {"id": "timm/test_resnet", "weights": str(tmp_path / "other.safetensors"), "input_size": 32}
    line = refused(backbones=[backbone])
    assert "somewhere.weight" in line
    assert "another architecture" in line


def test_missing_weights_are_named(refused: Refused, tmp_path: Path) -> None:
    line = refused(backbones=[{"id": "timm/test_resnet", "weights": str(tmp_path / "nowhere.safetensors")}])
    assert "nowhere.safetensors" in line


def test_an_empty_folder_says_what_was_expected(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(data={"train": str(tmp_path / "empty")})
    assert str(tmp_path / "empty") in line


def test_a_folder_that_does_not_exist_is_named(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere" in refused(data={"train": str(tmp_path / "nowhere")})


def test_a_single_class_cannot_be_learned(refused: Refused, classes: Callable[[dict[str, int]], str]) -> None:
    line = refused(data={"train": classes({"only": 6})})
    assert "only" in line
    assert "class" in line


def test_a_class_without_an_image_to_train_on_is_named_with_its_count(
    refused: Refused, classes: Callable[[dict[str, int]], str]
) -> None:
    folder = Path(classes({"many": 35, "few": 1}))
    [only] = (folder / "few").iterdir()
    content_id = hashlib.sha256(only.read_bytes()).hexdigest()
    seed = next(seed for seed in range(100) if position(seed, content_id) < 0.3)
    line = refused(data={"train": str(folder), "test_fraction": 0.3, "val_fraction": 0.3, "split_seed": seed})
    assert "'few' has 1 " in line
    assert "none of them in train" in line


def test_unreadable_images_alone_are_refused_with_a_reason(refused: Refused, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "html" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "html" / name / f"{index}.jpg").write_text(f"<html>{name}{index}</html>")
    assert "0.jpg" in refused(data={"train": str(tmp_path / "html")})


def test_more_bad_images_than_allowed_are_refused_with_the_counts(
    refused: Refused, classes: Callable[[dict[str, int]], str]
) -> None:
    folder = Path(classes({"a": 6, "b": 6}))
    for index in range(3):
        (folder / "a" / f"broken{index}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([index]))
    line = refused(data={"train": str(folder)})
    assert "3 of 15" in line
    assert "max_bad_fraction" in line


def test_more_workers_than_the_cluster_has_are_refused_with_both_numbers(refused: Refused) -> None:
    line = refused(sweep={"workers_per_trial": 64}, training={"batch_size": 256})
    assert "64" in line
    assert "the cluster has 2" in line


def test_a_batch_too_small_for_the_workers_is_refused(refused: Refused) -> None:
    assert "batch_size" in refused(sweep={"workers_per_trial": 2}, training={"batch_size": 2})


def test_more_trainable_blocks_than_there_are_is_refused_with_their_number(refused: Refused) -> None:
    line = refused(strategies=[{"strategy": "partial", "trainable_blocks": 99}])
    assert "99" in line
    assert "timm/test_resnet" in line


def test_a_storage_location_that_cannot_be_written_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / "file") in refused(storage=str(tmp_path / "file" / "runs"))


def test_a_missing_bucket_is_named(refused: Refused, s3: Any) -> None:
    assert "no-such-bucket" in refused(data={"train": "s3://no-such-bucket/images"})


def test_wrong_credentials_are_said_to_be_refused_and_not_shown(
    refused: Refused, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if s3.kind == "moto":
        pytest.skip("moto accepts any credentials")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-key")
    from tlray.storage.s3 import forget_clients

    forget_clients()
    line = refused(data={"train": f"{s3.uri}/images"})
    assert "credentials" in line
    assert "a-wrong-secret-key" not in line
    forget_clients()
