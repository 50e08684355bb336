"""`tlray doctor` on the installation and the machine: every finding has a status, a reason and a remedy."""

import io
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image
from rich.console import Console

from tests.unit.doctor_fakes import CPU, GPU, FakeCluster, FakeResources, make_config
from tlray.planning import doctor
from tlray.planning.doctor import Check, checks_table, run_checks
from tlray.planning.doctor import machine as machine_module
from tlray.planning.doctor import packages as packages_module
from tlray.planning.doctor import trial as trial_module
from tlray.planning.doctor.machine import check_cluster, check_gpus, check_open_files, check_shared_memory, memory_bytes
from tlray.planning.doctor.packages import Needs, check_packages, check_python, check_torch, read_needs

NEEDS = Needs(
    python=SpecifierSet(">=3.11"), packages=(Requirement("torch>=2.15,<2.16"), Requirement("torchvision>=0.29.2"))
)


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


# ---- all together


def test_all_checks_run_and_each_finding_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_torch", lambda needs: (Check("torch and torchvision", "ok", "fine"), CPU))
    monkeypatch.setattr(trial_module, "memory_bytes", lambda: (2**34, 2**34))
    for number in range(60):
        path = tmp_path / "images" / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4 + number)).save(path)
    checks = run_checks(make_config(tmp_path), FakeCluster, lambda sweep, cluster: FakeResources())
    names = [check.name for check in checks]
    assert names[:3] == ["Python", "packages", "torch and torchvision"]
    assert {"Ray", "GPUs", "storage", "data.train", "images", "trials at once", "memory", "disk"} <= set(names)
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
