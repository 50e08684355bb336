"""A Ray of this machine for the tests that sweep, and small runs for it to do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tlray.config import RunConfig

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Two CPUs, started once for all tests of this process."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def make_config(image_folder: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of one tiny network on the small image folder, with any field replaced."""

    def make(**fields: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "name": "test",
                "storage": str(tmp_path / "runs"),
                "data": {"train": str(image_folder), "val_fraction": 0.25, "test_fraction": 0.25},
                "backbones": [NETWORK],
                "strategies": ["full"],
                "training": {"epochs": 2, "batch_size": 8, "lr": 0.003, "augmentation": "light"},
                "baseline": {"backbone": NETWORK, "training": {"epochs": 1}},
                "sweep": {"scheduler": "fifo", "max_failures": 0},
                "export": {"top_k": 0},
                **fields,
            }
        )

    return make
