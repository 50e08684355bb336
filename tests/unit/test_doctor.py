"""`tlray doctor`: every finding has a status, says what it is about, and what to do."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console

from tlray import doctor
from tlray.config import RunConfig, SweepConfig
from tlray.doctor import Check, checks_table, run_checks
from tlray.doctor import locations as locations_module
from tlray.doctor import machine as machine_module
from tlray.doctor import packages as packages_module
from tlray.doctor import trial as trial_module
from tlray.doctor.locations import check_images, check_s3, check_storage, check_weights
from tlray.doctor.machine import check_cluster, check_gpus, check_open_files, check_shared_memory, memory_bytes
from tlray.doctor.packages import Needs, TorchFacts, check_packages, check_python, check_torch, read_needs
from tlray.doctor.trial import check_resources, check_trials
from tlray.errors import ClusterError

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
CPU = TorchFacts(torch="2.15.0", cuda=None, gpus=(), torchvision="0.29.2")
GPU = TorchFacts(torch="2.15.0", cuda="13.2", gpus=(("H200", 139 * 2**30),), torchvision="0.29.2")
NEEDS = Needs(
    python=SpecifierSet(">=3.11"), packages=(Requirement("torch>=2.15,<2.16"), Requirement("torchvision>=0.29.2"))
)


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


# ---- packages


def test_a_python_older_than_required_is_a_problem() -> None:
    assert check_python(NEEDS, "3.10.9").status == "problem"
    assert ">=3.11" in check_python(NEEDS, "3.10.9").detail
    assert check_python(NEEDS).status == "ok"


def test_the_requirements_are_those_of_the_project_without_its_extras() -> None:
    needs = read_needs()
    names = {package.name for package in needs.packages}
    assert {"torch", "torchvision", "ray", "timm", "boto3"} <= names
    assert "pytest" not in names
    assert needs.python.contains("3.11.0")
    assert not needs.python.contains("3.10.13")


def test_a_missing_and_an_outdated_package_are_both_named() -> None:
    check = check_packages(Needs(NEEDS.python, (Requirement("numpy>=999"), Requirement("tlray-no-such-package>=1"))))
    assert check.status == "problem"
    assert "numpy" in check.detail
    assert ">=999" in check.detail
    assert "tlray-no-such-package is missing" in check.detail
    assert "constraints.txt" in check.remedy


def test_torch_and_torchvision_that_work_together_are_ok_with_their_versions() -> None:
    import torch

    check, facts = check_torch(NEEDS)
    assert check.status == "ok"
    assert facts is not None
    assert facts.torch == torch.__version__
    assert facts.torch in check.detail


FAKE_TORCH = """
__version__ = "2.15.0+cpu"
class version: cuda = None
class cuda:
    device_count = staticmethod(lambda: 0)
    is_available = staticmethod(lambda: False)
"""


@pytest.mark.parametrize(
    ("torchvision", "reason"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision::nms does not exist"),
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    ],
)
def test_a_torchvision_built_for_another_torch_is_recognised_and_both_are_to_be_installed_together(
    torchvision: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    (tmp_path / "torchvision.py").write_text(torchvision)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check, facts = check_torch(NEEDS)
    assert (check.status, facts) == ("problem", None)
    assert "not built for the installed torch 2.15.0+cpu (a CPU-only build)" in check.detail
    assert reason in check.detail
    assert '"torch<2.16,>=2.15" "torchvision>=0.29.2"' in check.remedy
    assert "from one place" in check.remedy


def test_a_torch_that_does_not_import_ends_the_checks_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cuda.so is not whole')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks = run_checks(make_config(tmp_path))
    assert any(check.status == "problem" and "libtorch_cuda.so" in check.detail for check in checks)
    assert checks[-1].detail == "not looked at: it needs torch and torchvision"


def test_an_import_that_never_ends_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages_module, "PROBE_TIMEOUT_SECONDS", 0.5)
    assert check_torch(NEEDS)[0].status == "problem"


# ---- machine


def test_a_gpu_that_ray_does_not_count_is_a_warning_on_one_node() -> None:
    check = check_gpus(GPU, FakeCluster(gpus=0))
    assert check.status == "warning"
    assert "H200" in check.detail
    assert "--num-gpus=1" in check.remedy
    assert check_gpus(GPU, FakeCluster(gpus=1)).status == "ok"
    assert check_gpus(GPU, FakeCluster(gpus=0, num_nodes=3)).status == "ok"


def test_a_gpu_driver_with_a_torch_that_sees_no_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    check = check_gpus(CPU, None)
    assert check.status == "warning"
    assert "CPU-only build" in check.detail


def test_no_gpu_at_all_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module.shutil, "which", lambda name: None)
    assert check_gpus(CPU, FakeCluster()).status == "ok"


def test_a_low_limit_of_open_files_is_a_warning_and_no_limit_is_fine() -> None:
    assert check_open_files(1024).status == "warning"
    assert check_open_files(65536).status == "ok"
    assert check_open_files(machine_module.resource.RLIM_INFINITY).detail == "at most unlimited per process"


def test_shared_memory_smaller_than_rays_object_store_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 64 * 2**20})
    monkeypatch.setattr(machine_module.shutil, "disk_usage", lambda folder: usage)
    check = check_shared_memory(tmp_path)
    assert check.status == "warning"
    assert "64 MiB" in check.detail
    assert "--shm-size" in check.remedy
    assert check_shared_memory(tmp_path / "missing").status == "ok"


def test_memory_is_what_the_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine_module, "CGROUP_MEMORY", (limit,))
    limit.write_text("max\n")
    machine_total = memory_bytes()[0]
    limit.write_text(f"{2**20}\n")
    assert memory_bytes() == (2**20, 2**20)
    assert machine_total > 2**20


def test_a_ray_that_does_not_answer_is_a_problem_in_one_line() -> None:
    def no_ray() -> FakeCluster:
        raise ConnectionError("could not\nconnect")

    check, cluster = check_cluster(no_ray)
    assert (check.status, cluster) == ("problem", None)
    assert "ConnectionError: could not connect" in check.detail


# ---- locations


def test_a_storage_location_that_can_be_written_is_ok_and_one_below_a_file_is_a_problem(tmp_path: Path) -> None:
    assert only(check_storage(make_config(tmp_path))).status == "ok"
    (tmp_path / "file").write_text("")
    check = only(check_storage(make_config(tmp_path, storage=str(tmp_path / "file" / "runs"))))
    assert check.status == "problem"
    assert str(tmp_path / "file") in check.detail


def test_images_are_listed_and_one_is_read(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert only(check_images(config)).status == "problem"
    folder = tmp_path / "images" / "ant"
    folder.mkdir(parents=True)
    empty = only(check_images(config))
    assert (empty.status, empty.name) == ("problem", "data.train")
    assert "holds no files" in empty.detail
    (folder / "1.jpg").write_bytes(b"12345")
    found = only(check_images(config))
    assert found.status == "ok"
    assert "1.jpg read (5 bytes)" in found.detail


def test_a_weights_file_must_exist_and_random_weights_need_none(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    config = make_config(tmp_path, backbones=[{**NETWORK, "weights": str(weights)}])
    assert only(check_weights(config)).status == "problem"
    weights.write_bytes(b"")
    assert only(check_weights(config)).status == "ok"
    assert only(check_weights(make_config(tmp_path))).status == "ok"


def test_weights_that_the_synthetic_data_set_makes_need_not_exist_yet(tmp_path: Path) -> None:
    place = str(tmp_path / "made")
    config = make_config(
        tmp_path,
        data={"synthetic": {"location": place}},
        backbones=[{**NETWORK, "weights": f"{place}/net.safetensors"}],
    )
    assert only(check_weights(config)).status == "ok"


def refuse_download(url: str) -> int:
    raise OSError("no route to host")


def test_torchvisions_weights_are_looked_for_where_torch_hub_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(locations_module, "download_size", refuse_download)
    config = make_config(tmp_path, backbones=["torchvision/resnet18"])
    from torchvision.models import ResNet18_Weights

    url = ResNet18_Weights.DEFAULT.url
    path = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    check = only(check_weights(config))
    assert check.status == "warning"
    assert f"torchvision/resnet18: not in the cache at {path}, will be downloaded" in check.detail
    assert url in check.detail
    assert "no route to host" in check.detail
    monkeypatch.setattr(locations_module, "download_size", lambda url: 47 * 2**20)
    assert "will be downloaded: 47 MiB" in only(check_weights(config)).detail
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert only(check_weights(config)).detail == f"torchvision/resnet18: in the cache at {path}"


def test_timms_weights_are_looked_for_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(locations_module, "download_size", refuse_download)
    config = make_config(tmp_path, backbones=["timm/resnet10t.c3_in1k"])
    check = only(check_weights(config))
    assert check.status == "warning"
    assert str(tmp_path / "models--timm--resnet10t.c3_in1k") in check.detail
    snapshot = tmp_path / "models--timm--resnet10t.c3_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    references = snapshot.parent.parent / "refs"
    references.mkdir()
    (references / "main").write_text("abc")
    assert f"in the cache at {snapshot / 'model.safetensors'}" in only(check_weights(config)).detail


def test_an_unknown_backbone_is_a_problem_with_near_misses(tmp_path: Path) -> None:
    check = only(check_weights(make_config(tmp_path, backbones=["torchvision/resnet81"])))
    assert check.status == "problem"
    assert "torchvision/resnet18" in check.detail


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return monkeypatch


def test_the_source_of_credentials_is_named_and_the_secret_never(
    tmp_path: Path, no_credentials: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, storage="s3://bucket/runs")
    assert only(check_s3(config)).status == "problem"
    no_credentials.setenv("AWS_ACCESS_KEY_ID", "our-access-key")
    no_credentials.setenv("AWS_SECRET_ACCESS_KEY", "our-secret-key")
    no_credentials.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    check = only(check_s3(config))
    assert check.status == "ok"
    assert "endpoint http://127.0.0.1:9000" in check.detail
    assert "credentials from the environment" in check.detail
    assert not any(secret in str(check) for secret in ("our-access-key", "our-secret-key"))


def test_a_profile_that_does_not_exist_is_a_problem(tmp_path: Path, no_credentials: pytest.MonkeyPatch) -> None:
    no_credentials.setenv("AWS_PROFILE", "no-such-profile")
    check = only(check_s3(make_config(tmp_path, storage="s3://bucket/runs")))
    assert check.status == "problem"
    assert "no-such-profile" in check.detail


def test_s3_is_not_looked_at_where_nothing_is_on_it(tmp_path: Path) -> None:
    assert list(check_s3(make_config(tmp_path))) == []


# ---- one trial


def test_a_trial_that_does_not_fit_the_cluster_is_a_problem_in_rays_words(tmp_path: Path) -> None:
    def refuse(sweep: SweepConfig, cluster: Any) -> FakeResources:
        raise ClusterError("a trial needs 8 CPUs and the cluster has 2")

    check, resources = check_resources(make_config(tmp_path), FakeCluster(), refuse)
    assert (check.status, resources) == ("problem", None)
    assert check.detail == "a trial needs 8 CPUs and the cluster has 2"


def test_a_small_trial_fits_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "memory_bytes", lambda: (2**34, 2**34))
    checks = list(check_trials(make_config(tmp_path), CPU, FakeCluster(), FakeResources()))
    assert [(check.name, check.status) for check in checks] == [("memory", "ok"), ("disk", "ok")]
    assert checks[0].detail.startswith("000-baseline takes about 1.4 GiB")  # as much as `full`, which comes later
    assert "2 at once 2.8 GiB; this machine has 16.0 GiB free" in checks[0].detail


def test_a_trial_larger_than_the_machine_is_a_problem_and_one_larger_than_what_is_free_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    monkeypatch.setattr(trial_module, "memory_bytes", lambda: (2**30, 2**29))
    check = next(iter(check_trials(config, CPU, FakeCluster(), FakeResources())))
    assert check.status == "problem"
    assert "training.batch_size" in check.remedy
    monkeypatch.setattr(trial_module, "memory_bytes", lambda: (2**40, 2**29))
    assert next(iter(check_trials(config, CPU, FakeCluster(), FakeResources()))).status == "warning"


def test_a_trial_larger_than_its_gpu_is_a_problem(tmp_path: Path) -> None:
    small = TorchFacts(torch="2.15.0", cuda="13.2", gpus=(("tiny", 2**29),), torchvision="0.29.2")
    config = make_config(tmp_path)
    by_name = {check.name: check for check in check_trials(config, small, FakeCluster(gpus=1), FakeResources(gpus=1))}
    assert by_name["GPU memory"].status == "problem"
    by_name = {check.name: check for check in check_trials(config, GPU, FakeCluster(gpus=1), FakeResources(gpus=1))}
    assert by_name["GPU memory"].status == "ok"


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    check = list(check_trials(make_config(tmp_path), CPU, None, None))[-1]
    assert (check.name, check.status) == ("disk", "problem")


def test_a_strategy_that_the_backbone_cannot_do_is_a_problem(tmp_path: Path) -> None:
    config = make_config(tmp_path, strategies=[{"strategy": "partial", "trainable_blocks": 500}])
    check = only(check_trials(config, CPU, None, None))
    assert check.status == "problem"


# ---- all together


def test_all_checks_run_and_each_finding_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_torch", lambda needs: (Check("torch and torchvision", "ok", "fine"), CPU))
    monkeypatch.setattr(trial_module, "memory_bytes", lambda: (2**34, 2**34))
    (tmp_path / "images" / "ant").mkdir(parents=True)
    (tmp_path / "images" / "ant" / "1.jpg").write_bytes(b"1")
    checks = run_checks(make_config(tmp_path), FakeCluster, lambda sweep, cluster: FakeResources())
    names = [check.name for check in checks]
    assert names[:3] == ["Python", "packages", "torch and torchvision"]
    assert {"Ray", "GPUs", "storage", "data.train", "trials at once", "memory", "disk"} <= set(names)
    assert [check for check in checks if check.status == "problem"] == []
    assert all(check.detail and "\n" not in check.detail for check in checks)


def test_the_table_shows_every_finding_and_its_remedy_and_takes_brackets_literally() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(checks_table([Check("GPUs", "warning", "seen [red] 2"), Check("disk", "problem", "full", "free it")]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "seen [red] 2" in shown
    assert "-> free it" in shown


def test_the_module_offers_three_names() -> None:
    assert sorted(doctor.__all__) == ["Check", "checks_table", "run_checks"]
