"""`make test-gpu` fails where there is no GPU; a run of all tests leaves these out there."""

from pathlib import Path

import pytest
import torch
from image_splits import split_folders

from tlray.config import DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.training.worker import Worker


@pytest.fixture
def gpu(pytestconfig: pytest.Config) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if "gpu" in pytestconfig.option.markexpr.split():
        pytest.fail("torch sees no GPU")
    pytest.skip("torch sees no GPU")


@pytest.fixture
def worker(gpu: torch.device) -> Worker:
    return Worker(device=gpu)


@pytest.fixture(scope="session")
def manifest(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folders = split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=3, test=3)
    return make_manifest(DataConfig(**folders))
