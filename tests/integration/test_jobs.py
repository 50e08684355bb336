"""`ray job submit` against a head of this machine: exit code, first and last line of the log, stop and resume."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tlray import storage
from tlray.runs.board import load_leaderboard

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head with a job server on localhost -> the environment that `ray job` needs to find it."""
    ray = str(Path(sys.executable).parent / "ray")
    port, dashboard, agent, client, agent_grpc = (free_port() for _ in range(5))
    # Ray turns token authentication on for a head where a token lies in the home folder; its job commands do not.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment.pop("RAY_ADDRESS", None)
    temporary = Path("/tmp") / f"ray-{os.getpid()}"  # short: socket paths are limited to 107 bytes
    process = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--ray-client-server-port={client}", f"--temp-dir={temporary}"),
            *("--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        until_it_answers(dashboard, process)
        yield environment
    finally:  # not `ray stop`, which would end every Ray of this machine
        ours = [  # a process that ends meanwhile has no command line
            other
            for other in psutil.process_iter(["cmdline"])
            if str(temporary) in " ".join(other.info["cmdline"] or [])
        ]
        for other in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        process.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers: Ray asks for the token that its own commands send
        except OSError:
            pass
        assert process.poll() is None, "the head did not start"
        assert time.monotonic() < deadline, "the job server did not start"
        time.sleep(0.3)


def ray_job(head: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).parent / "ray")
    return subprocess.run(
        [ray, "job", *arguments], capture_output=True, text=True, env=head, cwd=REPOSITORY, timeout=280, check=False
    )


def submit(
    head: dict[str, str], *arguments: str, wait: bool = True, name: str = ""
) -> subprocess.CompletedProcess[str]:
    options = [*([] if wait else ["--no-wait"]), *(["--submission-id", name] if name else [])]
    job = [sys.executable, "jobs/sweep.py", *arguments]
    return ray_job(head, "submit", *options, "--working-dir", ".", "--entrypoint-num-cpus", "0", "--", *job)


def run_folders(log: str) -> list[str]:
    return re.findall(r"^run folder: (\S+)$", log, flags=re.MULTILINE)


def small_run(image_folder: Path, tmp_path: Path) -> list[str]:
    network = "{id: timm/test_resnet, weights: none, input_size: 32}"
    return [
        *("--config", "configs/demo.yaml", f"storage={tmp_path}/runs"),
        *("data.synthetic=null", f"data.train={image_folder}"),
        *(f"backbones=[{network}]", f"baseline.backbone={network}", "strategies=[linear_probe, full]"),
        *("search_space={}", "training.epochs=2", "training.batch_size=8"),
    ]


def test_a_submitted_sweep_ends_with_code_zero_and_its_log_names_the_run_folder_first_and_last(
    head: dict[str, str], image_folder: Path, tmp_path: Path
) -> None:
    done = submit(head, *small_run(image_folder, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    folders = run_folders(done.stdout)
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert len(load_leaderboard(folders[0]).rows) == 3
    assert storage.exists(storage.join(folders[0], "DONE"))


def test_a_submitted_sweep_with_a_misspelt_key_fails_with_one_clear_line(
    head: dict[str, str], image_folder: Path, tmp_path: Path
) -> None:
    refused = submit(head, *small_run(image_folder, tmp_path), "training.epoch=2")
    assert refused.returncode != 0
    assert "did you mean 'epochs'" in refused.stdout + refused.stderr


def test_a_stopped_job_can_be_resumed_by_another(head: dict[str, str], image_folder: Path, tmp_path: Path) -> None:
    submitted = submit(head, *small_run(image_folder, tmp_path), "training.epochs=15", wait=False, name="stopped")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/demo/*/trials/*/progress.json")):
        assert time.monotonic() < deadline, ray_job(head, "logs", "stopped").stdout
        time.sleep(0.1)
    assert ray_job(head, "stop", "stopped").returncode == 0
    log = ray_job(head, "logs", "stopped").stdout
    run_uri = run_folders(log)[0]
    assert "interrupted by SIGTERM" in log
    assert f"tlray resume {run_uri}" in log
    assert "Job 'stopped' was stopped" in ray_job(head, "status", "stopped").stdout
    assert not storage.exists(storage.join(run_uri, "DONE"))
    resumed = submit(head, "--resume", run_uri, name="resumed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert run_folders(resumed.stdout) == [run_uri, run_uri]
    assert "Job 'resumed' succeeded" in ray_job(head, "status", "resumed").stdout
    assert all(  # none is repeated: each epoch once, in order
        [json.loads(row)["epoch"] for row in history.read_text().splitlines()] == list(range(1, 16))
        for history in Path(run_uri).glob("trials/*-full/history.jsonl")
    )
    assert storage.exists(storage.join(run_uri, "DONE"))
