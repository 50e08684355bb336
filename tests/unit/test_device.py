"""The device that a process may use, and how it is timed and told to compute. No GPU is needed: one is made up."""

import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from tlray.activations import decision
from tlray.config import BackboneConfig, Recipe, RunConfig, StrategyConfig, TrialConfig
from tlray.config.search_space import list_trials
from tlray.distributed.tasks import take_given_gpu
from tlray.models.backbone import build_backbone
from tlray.models.split import find_cut
from tlray.planning.doctor import packages
from tlray.planning.precision import with_chosen_precision
from tlray.planning.speed.trials import TimedTrial, trials_that_pay
from tlray.process import device
from tlray.process.device import CPU, arithmetic, chosen_precision, fastest, given_device, withhold_gpus
from tlray.runs.budget.costs import ReadSeconds, StepSeconds
from tlray.runs.budget.estimate import TrialCost, sweep_stages
from tlray.runs.budget.machines import Machines
from tlray.training.fusion import can_fuse
from tlray.training.worker import local_worker

GPU = torch.device("cuda")
NETWORK = BackboneConfig(id="timm/test_resnet", weights="none", input_size=32)


@pytest.fixture(autouse=True)
def _gpus_are_given() -> Iterator[None]:
    yield
    withhold_gpus(False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class ColdPrefix(nn.Module):
    """Takes a second for the first batch of each shape, as cuDNN does where it looks for kernels, and then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.Size] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape not in self.seen:
            self.seen.add(images.shape)
            time.sleep(1.05)
        return images


def test_a_cold_device_is_warm_when_the_plan_times_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(NETWORK, 3)
    monkeypatch.setattr(decision, "frozen_prefix", lambda backbone, cuts: ColdPrefix())
    monkeypatch.setattr(decision, "folded", lambda prefix: prefix)
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8)] * 8
    config = RunConfig.model_validate({"name": "x", "data": {"train": "d"}, "backbones": ["a"]})
    seconds = decision._measure_prefix(backbone, find_cut(backbone, 2), images, config)
    assert seconds < 0.05


def test_of_passes_that_take_long_one_counts_after_the_first() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(time.perf_counter())
        time.sleep(1.01)

    assert 1.0 < fastest(work, CPU) < 1.5
    assert len(calls) == 2


@pytest.mark.usefixtures("gpu")
def test_a_process_that_ray_gave_no_gpu_leaves_those_of_its_node_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_worker().device.type == "cuda"
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [])
    take_given_gpu()
    assert local_worker().device == CPU
    assert device.num_gpus() == device.gpu_bytes() == 0
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])  # the next task of the same process has one
    take_given_gpu()
    assert local_worker().device.type == "cuda"


@pytest.mark.usefixtures("gpu")
def test_gpus_per_worker_of_zero_is_the_cpu_without_ray_too() -> None:
    assert given_device(0) == given_device(0.0) == CPU
    assert given_device("auto") == given_device(None) == given_device(0.5) == GPU


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")]
)
def test_auto_is_the_lowest_precision_that_a_gpu_is_fast_in(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert chosen_precision("auto", GPU) == expected
    assert chosen_precision("float32", GPU) == "float32"
    assert chosen_precision("auto", CPU) == "float32"


def test_a_run_writes_the_precision_that_it_chose_wherever_auto_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    config = RunConfig.model_validate(
        {
            "name": "x",
            "data": {"train": "d"},
            "backbones": ["timm/a"],
            "strategies": [
                {"strategy": "full", "search_space": {"precision": {"grid": ["auto", "float32", "bfloat16"]}}},
                {"strategy": "linear_probe", "training": {"precision": "auto"}},
            ],
            "baseline": {"training": {"precision": "float32"}},
        }
    )
    chosen = with_chosen_precision(config, GPU)
    assert [trial.recipe.precision for trial in list_trials(chosen)] == ["float32", "bfloat16", "float32", "bfloat16"]
    assert chosen.activations.precision == "bfloat16"
    assert with_chosen_precision(chosen, CPU) == chosen


def test_determinism_is_asked_for_inside_of_a_trial_alone() -> None:
    before = torch.backends.cudnn.allow_tf32
    with arithmetic(CPU, "float32", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 == before


def test_what_stays_float32_multiplies_in_tf32_beside_a_lower_precision_on_a_gpu() -> None:
    for where, precision, expected in (
        (GPU, "bfloat16", "high"),
        (GPU, "float32", "highest"),
        (CPU, "bfloat16", "highest"),
    ):
        with arithmetic(where, precision):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_doctor_of_a_folder_copied_without_metadata_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("tlray.__file__", str(tmp_path / "tlray" / "__init__.py"))
    monkeypatch.setattr(metadata, "metadata", missing)
    needs = packages.read_needs()
    assert packages.check_python(needs).status == "ok"
    check = packages.check_packages(needs)
    assert check.status == "warning"
    assert "no pyproject.toml" in check.detail


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_linear_probes_train_together_in_every_precision(precision: str) -> None:
    assert can_fuse(
        TrialConfig(
            trial_id="t",
            backbone=NETWORK,
            strategy=StrategyConfig(strategy="linear_probe"),
            recipe=Recipe.model_validate({"precision": precision}),
            seed=0,
        )
    )


@pytest.mark.parametrize(("busy", "expected"), [(1.0, 1), (0.9, 1), (0.57, 2), (0.25, 4), (0.1, 10)])
def test_a_gpu_is_shared_by_as_many_trials_as_keep_it_busy(busy: float, expected: int) -> None:
    step = StepSeconds(train=0.1, evaluate=0.1, busy=busy)
    assert trials_that_pay(TimedTrial(((0, 1, step),), ReadSeconds(0.0, 0.0))) == expected


def test_the_plan_counts_as_many_trials_at_once_as_their_shares_allow() -> None:
    machines = Machines(concurrent_trials=1, on_gpus=True, gpus=1, most_trials=16)
    assert machines.sharing([0.125] * 10).concurrent_trials == 8
    assert machines.sharing([0.5, 0.25]).concurrent_trials == 2
    assert machines.model_copy(update={"most_trials": 3}).sharing([0.125]).concurrent_trials == 3
    assert machines.sharing([1.0, 1.0]).concurrent_trials == 1
    on_cpus = Machines(concurrent_trials=4)
    assert on_cpus.sharing([1.0]) == on_cpus


def test_the_start_of_cuda_is_a_part_of_the_estimate() -> None:
    costs = [TrialCost(trial_id="t", seconds=1.0, group=None), TrialCost(trial_id="p", seconds=2.0, group="g")]
    warm = Machines(concurrent_trials=1, on_gpus=True, gpus=1)
    cold = warm.model_copy(update={"device_seconds": 9.0})
    before = {stage.name: stage.seconds for stage in sweep_stages(costs, [], warm)}
    after = {stage.name: stage.seconds for stage in sweep_stages(costs, [], cold)}
    assert after == {name: pytest.approx(seconds + 9.0) for name, seconds in before.items()}
