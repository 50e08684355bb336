"""What leaves this process for a worker means there what it meant here."""

import re
from pathlib import Path

import pytest

from tlray.config import RunConfig
from tlray.runs.prepare import with_absolute_locations


def test_no_location_is_left_relative_to_a_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig.model_validate(
        {
            "name": "test",
            "storage": "runs",
            "data": {"train": "images/train", "val": "s3://bucket/val", "test": "~/test"},
            "backbones": [
                {"id": "torchvision/resnet18", "weights": "w.safetensors"},
                {"id": "torchvision/resnet18", "weights": "none"},
                "torchvision/resnet18",
            ],
        }
    )
    absolute = with_absolute_locations(config)
    assert absolute.storage == f"{tmp_path}/runs"
    assert absolute.activations.location == f"{tmp_path}/runs/activations"
    assert absolute.data.train == f"{tmp_path}/images/train"
    assert absolute.data.val == "s3://bucket/val"
    assert absolute.data.test == str(Path("~/test").expanduser())
    assert [backbone.weights for backbone in absolute.backbones] == [f"{tmp_path}/w.safetensors", "none", "pretrained"]
    assert with_absolute_locations(absolute) == absolute
    fields = {**config.model_dump(), "data": {"synthetic": {"location": "d"}}}
    synthetic = RunConfig.model_validate(fields)
    made = with_absolute_locations(synthetic).data.synthetic
    assert made is not None
    assert re.fullmatch(rf"{tmp_path}/d", made.location)
