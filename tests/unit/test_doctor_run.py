"""`tlray doctor CONFIG`: the places and weights that a run needs, and whether its trials fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.unit.doctor_fakes import CPU, GPU, NETWORK, FakeCluster, FakeResources, make_config, only
from tlray.config import RunConfig
from tlray.errors import ClusterError
from tlray.planning.doctor import locations as locations_module
from tlray.planning.doctor import trial as trial_module
from tlray.planning.doctor.locations import check_images, check_s3, check_storage, check_weights
from tlray.planning.doctor.packages import TorchFacts
from tlray.planning.doctor.trial import check_resources, check_trials

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
    assert "holds no class folders with images" in empty.detail
    (folder / "1.jpg").write_bytes(b"12345")
    found = only(check_images(config))
    assert found.status == "ok"
    assert "1.jpg read (5 bytes)" in found.detail


def test_a_weights_file_must_exist_and_random_weights_need_none(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    config = make_config(tmp_path, backbones=[{**NETWORK, "weights": str(weights)}])
    assert only(check_weights(config)).status == "problem"
    weights.write_bytes(save({"a": torch.zeros(1)}))
    assert only(check_weights(config)).status == "ok"
    weights.write_bytes(b"<html>404</html>")
    assert "a web page" in only(check_weights(config)).detail
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
    def refuse(config: RunConfig, cluster: Any) -> FakeResources:
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
