"""A cluster of three raylets on this machine: a node is lost, a trial spans two, a node does not see the storage."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray_clusters import RunningCluster, fixed_cluster, kill_node, start_worker

from tlray.config import RunConfig
from tlray.runs.board import load_leaderboard
from tlray.runs.results import Leaderboard
from tlray.runs.trials import load_results

MakeConfig = Callable[..., RunConfig]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

VIT = {"id": "timm/test_vit", "weights": "none", "input_size": 32}
DRIVER = """
import sys
from rich.console import Console
from tlray.cli.common import exit_on_error
from tlray.config import RunConfig
from tlray.workflows.run import run

with exit_on_error():
    run(RunConfig.model_validate_json(sys.argv[1]), sys.argv[2], Console(width=200))
"""


@pytest.fixture
def cluster() -> Iterator[RunningCluster]:
    with fixed_cluster() as running:
        yield running


def start_sweep(cluster: RunningCluster, config: RunConfig, run_uri: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.model_dump_json(), str(run_uri)],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(sweep: subprocess.Popen[str]) -> tuple[int, str]:
    log, _ = sweep.communicate(timeout=400)
    return sweep.returncode, log


def places(leaderboard: Leaderboard) -> list[tuple]:
    """What must not depend on where a trial ran."""
    return [(row.trial_id, row.rank, row.val_accuracy, row.val_loss, row.test_accuracy) for row in leaderboard.rows]


def test_a_node_lost_in_mid_sweep_changes_nothing_of_the_leaderboard(
    cluster: RunningCluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        search_space={"lr": {"grid": [0.001, 0.003]}},
        training={"epochs": 40, "batch_size": 8},
        sweep={"scheduler": "fifo", "max_failures": 2},
    )
    nodes = [start_worker(cluster, num_cpus=1) for _ in range(2)]
    assert end_of(start_sweep(cluster, config, tmp_path / "undisturbed"))[0] == 0
    sweep = start_sweep(cluster, config, tmp_path / "disturbed")
    trains_on = until_a_trial_trains(nodes, tmp_path / "disturbed")
    kill_node(trains_on)
    code, log = end_of(sweep)
    assert code == 0, log
    rows = load_results(str(tmp_path / "disturbed"))
    assert {row.status for row in rows} == {"completed"}
    assert max(Counter(row.trial_id for row in rows).values()) == 1
    boards = [load_leaderboard(str(tmp_path / name)) for name in ("undisturbed", "disturbed")]
    assert places(boards[0]) == places(boards[1])


def until_a_trial_trains(nodes: list[psutil.Process], run_uri: Path) -> psutil.Process:
    """The node with a Tune actor at work, once some trial has finished an epoch."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if list(run_uri.glob("trials/*/progress.json")):
            for node in nodes:
                names = ["".join(process.cmdline()[:1]) for process in node.children(recursive=True)]
                if any("ImplicitFunc.train" in name for name in names):
                    return node
        time.sleep(0.05)
    raise AssertionError("no trial has trained")


def test_a_trial_over_two_nodes_trains_like_one_on_one(
    cluster: RunningCluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    """LayerNorm sees no batch, so only the order of additions differs. No node holds both workers."""
    rows = {}
    for _ in range(2):
        start_worker(cluster, num_cpus=1)
    for workers in (1, 2):
        config = make_config(
            backbones=[VIT],
            baseline={"backbone": VIT, "training": {"epochs": 1}},
            activations={"materialise": "never"},
            sweep={"scheduler": "fifo", "workers_per_trial": workers},
        )
        run_uri = tmp_path / f"workers-{workers}"
        code, log = end_of(start_sweep(cluster, config, run_uri))
        assert code == 0, log
        rows[workers] = {row.trial_id: row for row in load_results(str(run_uri))}
    assert rows[1].keys() == rows[2].keys()
    for trial_id, alone in rows[1].items():
        together = rows[2][trial_id]
        assert (alone.status, together.status) == ("completed", "completed")
        assert together.val_loss == pytest.approx(alone.val_loss, abs=1e-4)
        assert together.val_accuracy == alone.val_accuracy
        assert together.images_seen == alone.images_seen


def test_a_storage_that_a_node_does_not_see_is_refused_before_anything_is_done(
    cluster: RunningCluster, make_config: MakeConfig, image_folder: Path
) -> None:
    """The node sees an empty folder of its own at that path, as another machine would."""
    own_mounts = ("unshare", "--map-root-user", "--mount")
    if not shutil.which("unshare") or subprocess.run([*own_mounts, "true"], check=False).returncode:
        pytest.skip("this system gives no process mounts of its own")
    config = make_config()
    Path(config.storage).mkdir()
    hide = f'mount -t tmpfs none {config.storage} && exec "$@"'
    start_worker(cluster, num_cpus=2, within=(*own_mounts, "sh", "-c", hide, "sh"))
    code, log = end_of(start_sweep(cluster, config, Path(config.storage) / "run"))
    assert code == 2, log
    assert f"error: storage {config.storage} is a folder of this machine, and 1 of the 1 other nodes do not" in log
    assert list(Path(config.storage).iterdir()) == []
    output = Path(config.storage) / "predictions"
    command = [
        sys.executable,
        "-m",
        "tlray.cli",
        "predict",
        str(image_folder),
        str(image_folder),
        "--output",
        str(output),
    ]
    predict = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert predict.returncode == 2, predict.stderr
    assert f"error: --output {output} is a folder of this machine" in predict.stderr
