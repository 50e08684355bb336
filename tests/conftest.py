"""What all tests share: one torch thread, a small folder of images, and an S3 server that starts on first use."""

import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))  # for s3server, also with --import-mode=importlib

from s3server import S3Server, chosen_server, running_s3_server  # noqa: E402

S3_IN_USE = pytest.StashKey[S3Server]()
S3_OF_WORKERS = pytest.StashKey["S3InUse"]()
CLASS_COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}
IMAGES_PER_CLASS = 12
IMAGE_SIZE = 40


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket on the test server; `environment` is what a subprocess needs to reach it."""

    name: str
    kind: str  # "ceph" or "moto"
    endpoint: str
    environment: dict[str, str]

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, in subprocesses too
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tlray-tests-cache-")
    config.stash[S3_OF_WORKERS] = S3InUse()
    config.pluginmanager.register(config.stash[S3_OF_WORKERS])


def pytest_report_header(config: pytest.Config) -> str:
    _, reason = chosen_server()
    return f"S3 server: {reason}"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests that start Ray, one after the other: each takes every CPU for itself."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


class S3InUse:
    """Which S3 servers the processes of a parallel session used."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    @pytest.hookimpl(optionalhook=True)  # of pytest-xdist
    def pytest_testnodedown(self, node: Any) -> None:
        self.found.update(getattr(node, "workeroutput", {}).get("s3", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None and S3_IN_USE in session.config.stash:
        output["s3"] = [in_words(session.config.stash[S3_IN_USE])]


def in_words(server: S3Server) -> str:
    return f"{server.kind} on {server.endpoint}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    used = set(config.stash[S3_OF_WORKERS].found)
    if S3_IN_USE in config.stash:
        used.add(in_words(config.stash[S3_IN_USE]))
    for server in sorted(used):
        terminalreporter.write_line(f"S3 tests ran against {server}")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def s3_server(pytestconfig: pytest.Config) -> Iterator[S3Server]:
    """The server itself, for fixtures of a whole session; `s3` is what a test wants."""
    # not pytest's own folder, whose path may be too long for the sockets in it
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, running_s3_server(Path(folder)) as server:
        pytestconfig.stash[S3_IN_USE] = server
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket, with the environment set so that everything in this process finds it."""
    import boto3

    from tlray import storage

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.forget_clients()
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    yield Bucket(name, s3_server.kind, s3_server.endpoint, dict(s3_server.environment))
    storage.forget_clients()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 JPEGs of 40 pixels in three classes that their colour tells apart. Shared: copy before you change it."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label, colour in CLASS_COLOURS.items():
        (folder / label).mkdir()
        for index in range(IMAGES_PER_CLASS):
            pixels = np.array(colour) + random.normal(0, 40, (IMAGE_SIZE, IMAGE_SIZE, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / label / f"{index:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real images and weights, which are not part of the repository; tests that need them are skipped without."""
    path = Path(os.environ.get("TLRAY_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip(f"no folder of real images and weights at {path} (TLRAY_SHARED names another one)")
    return path
