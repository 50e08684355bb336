"""A whole trial on images behind a bad network: what passes is not noticed, what stays is counted and named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_proxy
import pytest
from fault_proxy import FaultProxy
from PIL import Image
from rich.console import Console

from tlray import storage
from tlray.config import RunConfig
from tlray.errors import DataError, TlrayError
from tlray.planning.planner import plan_run
from tlray.runs.prepare import Run, new_run_uri, prepare_run
from tlray.training.run_images import run_images
from tlray.training.trial import run_trial
from tlray.training.worker import local_worker
from tlray.workflows.local import run_local

pytestmark = pytest.mark.s3

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
PATIENCE = {"ATTEMPTS": "4", "BACKOFF": "0.01", "READ_TIMEOUT": "1", "REQUEST_TIMEOUT": "3"}


@pytest.fixture
def proxy(s3: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The 36 small images, and a page of HTML for one, in a bucket behind a proxy."""
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "red" / "page.jpg").write_text("<html>not found</html>")
    storage.upload_folder(tmp_path / "images", f"{s3.uri}/images")
    for name, value in PATIENCE.items():
        monkeypatch.setenv(f"TLRAY_S3_{name}", value)
    with fault_proxy.fault_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        storage.forget_clients()
        yield running
        storage.forget_clients()


@pytest.fixture
def config(s3: Any, proxy: FaultProxy, tmp_path: Path) -> RunConfig:
    data = {"train": f"{s3.uri}/images", "val_fraction": 0.25, "test_fraction": 0.25, "max_bad_fraction": 0.2}
    nothing_kept = {"memory_cache_mb": 0, "pixels_max_gb": 0}
    return RunConfig.model_validate(
        {
            "name": "faults",
            "storage": str(tmp_path / "runs"),
            "data": {**data, **nothing_kept, "cache": str(tmp_path / "cache")},
            "backbones": [NETWORK],
            "strategies": ["full"],
            "training": {"epochs": 2, "batch_size": 8, "augmentation": "none"},
            "baseline": {"backbone": NETWORK, "training": {"epochs": 1}},
            "export": {"top_k": 0},
        }
    )


def prepared(config: RunConfig, prepare: str) -> Run:
    config = config.model_copy(update={"data": config.data.model_copy(update={"prepare": prepare})})
    return prepare_run(plan_run(config), new_run_uri(config))


def losses(run: Run) -> list[tuple[float, float]]:
    """Of the last trial, trained in this process."""
    curve: list[tuple[float, float]] = []
    images = run_images(run.uri)
    row = run_trial(
        run.trials[-1],
        run.uri,
        local_worker(),
        images,
        lambda metrics: curve.append((metrics.train_loss, metrics.val_loss)),
    )
    assert row is not None
    assert row.status == "completed", row.error
    return curve


@pytest.mark.parametrize("prepare", ["never", "always"])
def test_a_run_through_faults_that_pass_counts_every_image_and_trains_as_if_there_were_none(
    prepare: str, config: RunConfig, proxy: FaultProxy
) -> None:
    undisturbed = losses(prepared(config, "never"))
    proxy.spoil(fault_proxy.slow_down, times=3, path="/blue/0")
    proxy.spoil(fault_proxy.reset_half_way, times=2, path="/green/05")
    proxy.spoil(fault_proxy.truncated, times=2, path="/green/1")
    proxy.spoil(fault_proxy.announced_too_short, times=1, path="/red/02")
    proxy.spoil(fault_proxy.stalled, times=1, path="/red/03")
    run = prepared(config, prepare)
    assert {split: len(run.manifest.split(split)) for split in ("train", "val", "test")} == run.plan.num_images
    assert sum(run.plan.num_images.values()) == 36
    proxy.spoil(fault_proxy.slow_down, times=2, path="/blue/1")
    proxy.spoil(fault_proxy.cut_short, times=2, path="/red/1")
    assert losses(run) == undisturbed
    assert [line["uri"].rpartition("/")[2] for line in bad_images(run)] == ["page.jpg"]


def test_objects_that_vanish_after_the_listing_are_counted_and_named(config: RunConfig, proxy: FaultProxy) -> None:
    for path in ("/images/green/07", "/images/red/1"):
        proxy.spoil(fault_proxy.missing, path=path)
    run = prepared(config, "always")
    found = {line["uri"].rpartition("images/")[2]: line["reason"] for line in bad_images(run)}
    vanished = {"green/07.jpg", "red/10.jpg", "red/11.jpg"}
    assert set(found) == {"red/page.jpg", *vanished}
    assert all("does not exist" in found[name] for name in vanished), found
    assert sum(run.plan.num_images.values()) == 33
    assert len(losses(run)) == 2


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_an_object_that_is_gone_or_changed_in_mid_run_ends_the_trial_and_is_named(
    what: str, config: RunConfig, s3: Any, tmp_path: Path
) -> None:
    run = prepared(config, "never")
    uri = next(iter(run.manifest.split("train"))).uri
    if what == "gone":
        storage.delete(uri)
    else:
        Image.new("RGB", (40, 40), "white").save(tmp_path / "other.jpg")
        storage.write_bytes(uri, (tmp_path / "other.jpg").read_bytes())
    with pytest.raises(DataError, match=rf"^{uri} .*{what}"):
        run_trial(run.trials[-1], run.uri, local_worker(), run_images(run.uri), lambda metrics: None)


def test_prepared_images_outlive_their_objects(config: RunConfig, s3: Any) -> None:
    run = prepared(config, "always")
    for image in run.manifest.images:
        storage.delete(image.uri)
    assert len(losses(run)) == 2


def test_access_that_ends_in_mid_run_ends_the_run_in_one_line(config: RunConfig, proxy: FaultProxy) -> None:
    proxy.spoil(fault_proxy.access_denied, path="/images/green")
    with pytest.raises(TlrayError, match=r"green/.*AccessDenied") as caught:
        run_local(config, None, new_run_uri(config), Console(quiet=True))
    assert "\n" not in str(caught.value)


def bad_images(run: Run) -> list[dict[str, str]]:
    text = storage.read_text(storage.join(run.uri, "bad_images.jsonl"))
    assert run.plan.num_bad_images == len(text.splitlines())
    return [json.loads(line) for line in text.splitlines()]
