"""Bad input that only the cluster sees ends as the other does (tests/unit/test_bad_inputs.py has the table)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tlray.cli import main

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


def test_weights_of_another_architecture_are_refused_with_the_keys_that_differ(
    refused: Refused, tmp_path: Path
) -> None:
    save_file({"somewhere.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    backbone = {"id": "timm/test_resnet", "weights": str(tmp_path / "other.safetensors"), "input_size": 32}
    line = refused(backbones=[backbone])
    assert "somewhere.weight" in line
    assert "another architecture" in line


def test_unreadable_images_alone_are_refused_with_a_reason(refused: Refused, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "html" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "html" / name / f"{index}.jpg").write_text(f"<html>{name}{index}</html>")
    assert "0.jpg" in refused(data={"train": str(tmp_path / "html")})


def test_more_workers_than_the_cluster_has_are_refused_with_both_numbers(refused: Refused) -> None:
    line = refused(sweep={"workers_per_trial": 64}, training={"batch_size": 256})
    assert "64" in line
    assert "the cluster has 2" in line
