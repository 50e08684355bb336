"""A cluster, its resources and a small configuration for the doctor to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlray.config import RunConfig
from tlray.planning.doctor.check import Check
from tlray.planning.doctor.packages import TorchFacts

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
CPU = TorchFacts(torch="2.15.0", cuda=None, gpus=(), torchvision="0.29.2")
GPU = TorchFacts(torch="2.15.0", cuda="13.2", gpus=(("H200", 139 * 2**30),), torchvision="0.29.2")


@dataclass(frozen=True)
class FakeCluster:
    num_nodes: int = 1
    cpus: float = 2
    gpus: float = 0
    memory_bytes: float = 8 * 2**30


@dataclass(frozen=True)
class FakeResources:
    num_workers: int = 1
    gpus: float = 0
    concurrent: int = 2
    nested: bool = False


def make_config(tmp_path: Path, **fields: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(tmp_path / "images")},
            "backbones": [NETWORK],
            "strategies": ["linear_probe", "full"],
            "baseline": {"backbone": NETWORK},
            **fields,
        }
    )


def only(checks: Any) -> Check:
    (check,) = list(checks)
    return check
