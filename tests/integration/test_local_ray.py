"""What a Ray of a command's own shows to others on its machine: nothing. One run under Tune, watched from outside."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from tlray.config import RunConfig

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent
CANARY = "canary-3f9a71"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"{CANARY}-id",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "AWS_ENDPOINT_URL": f"http://user:{CANARY}-password@127.0.0.1:9",
    "HF_TOKEN": f"{CANARY}-hf",
    "WANDB_API_KEY": f"{CANARY}-wandb",
    "TLRAY_WEBHOOK": f"http://127.0.0.1:9/{CANARY}-hook",
}


@dataclass
class Seen:
    """What could be seen of a command while it ran, and after."""

    code: int
    output: str
    addresses: set[str] = field(default_factory=set)  # where its processes listened
    nice: set[int] = field(default_factory=set)  # of Ray's workers
    modes: set[int] = field(default_factory=set)  # of the folders that everything of Ray lay in
    places: set[str] = field(default_factory=set)  # where a secret was found
    num_workers: int = 0


def watched(arguments: list[str], folder: Path, scratch: Path) -> Seen:
    """Run `tlray` with secrets in its environment; look several times a second until it ends."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", NICENESS)}
    log = folder / "output"
    seen = Seen(code=-1, output="")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tlray", *arguments],
            env={**environment, **SECRETS, "RAY_TMPDIR": str(scratch), "TMPDIR": str(scratch)},
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            look(psutil.Process(process.pid), seen)
            seen.modes |= {stat.S_IMODE(path.stat().st_mode) for path in scratch.glob("tlray-ray-*") if path.exists()}
            seen.places |= set(with_secrets(scratch))
            time.sleep(0.2)
    seen.code, seen.output = process.returncode, log.read_text()
    seen.places |= set(with_secrets(folder))
    return seen


NICENESS = "RAY_worker_niceness"


def look(command: psutil.Process, seen: Seen) -> None:
    with contextlib.suppress(psutil.Error):
        for process in [command, *command.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if CANARY in line:
                    seen.places.add(line)
                if line.startswith("ray::"):
                    seen.num_workers += 1
                    seen.nice.add(process.nice())
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        seen.addresses.add(connection.laddr.ip)


def with_secrets(folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder):  # which passes over folders that go meanwhile
        for path in (Path(where) / name for name in names):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes():
                    yield str(path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="l-") as folder:  # short: sockets lie in it
        yield Path(folder)


def test_a_run_listens_on_loopback_shows_no_secret_is_not_niced_and_leaves_nothing(
    make_config: Callable[..., RunConfig], tmp_path: Path, scratch: Path
) -> None:
    config = make_config(training={"epochs": 1, "batch_size": 8}, export={"top_k": 1})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    seen = watched(["run", str(tmp_path / "config.yaml")], tmp_path, scratch)
    assert seen.code == 0, seen.output
    assert seen.num_workers > 0
    assert {address.removeprefix("::ffff:") for address in seen.addresses} == {"127.0.0.1"}
    assert seen.nice == {psutil.Process().nice()}  # as the command itself
    assert seen.modes == {0o700}
    assert seen.places == set()
    assert [path for path in scratch.iterdir() if "ray" in path.name] == []  # torch and ONNX leave caches of their own
    assert "Traceback" not in seen.output


def test_a_command_that_fails_says_no_secret(tmp_path: Path, scratch: Path) -> None:
    config = "name: secrets\ndata: {train: 's3://bucket/images'}\nbackbones: [timm/test_resnet]\n"
    (tmp_path / "config.yaml").write_text(f"{config}storage: {tmp_path}/runs\n")
    for command in ("plan", "run"):
        seen = watched([command, str(tmp_path / "config.yaml")], tmp_path, scratch)
        assert seen.code == 1, seen.output
        assert "cannot connect to http://127.0.0.1:9" in seen.output
        assert seen.places == set()
