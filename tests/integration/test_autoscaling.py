"""A sweep on a cluster that its autoscaler grows from nothing, lets go again, and that never comes at all."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import NodeWatch, RunningCluster, autoscaling_cluster

from tlray.config import RunConfig
from tlray.runs.trials import load_results

MakeConfig = Callable[..., RunConfig]
pytestmark = pytest.mark.ray

WORKER = {"CPU": 1, "accelerator": 1}  # a resource that only workers have, as GPUs are
DRIVER = """
import json, sys
from rich.console import Console
from tlray.cli.common import exit_on_error
from tlray.config import RunConfig
from tlray.workflows.run import run

with exit_on_error():
    run(RunConfig.model_validate_json(sys.argv[1]), sys.argv[2], Console(width=200))
print("torch in the driver:", "torch" in sys.modules)
"""


def sweep(cluster: RunningCluster, config: RunConfig, run_uri: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, config.model_dump_json(), str(run_uri)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def small_sweep(make_config: MakeConfig, **sweep: Any) -> RunConfig:
    """Six trials and the baseline, none of which is stopped early."""
    return make_config(
        search_space={"lr": {"grid": [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]}},
        training={"epochs": 100, "batch_size": 8, "augmentation": "none"},
        sweep={"scheduler": "fifo", "resources_per_worker": {"accelerator": 1}, **sweep},
        cluster={"wait_minutes": 2},
        export={"top_k": 1},
    )


@pytest.mark.slow
def test_a_sweep_brings_the_cluster_from_no_worker_to_four_and_it_goes_back_to_none(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config, run_uri = small_sweep(make_config), tmp_path / "run"
    kinds = {"worker": {"resources": WORKER, "max_workers": 4}}
    with autoscaling_cluster(kinds, idle_seconds=10) as cluster, NodeWatch(cluster.folder) as nodes:
        assert nodes.workers() == 0
        started = time.monotonic()
        done = sweep(cluster, config, run_uri)
        took = time.monotonic() - started
        assert done.returncode == 0, done.stdout + done.stderr
        while nodes.workers():
            assert time.monotonic() - started < took + 90, "the workers stay"
            time.sleep(0.5)
        total = time.monotonic() - started
    print(f"sweep {took:.0f} s, until the last worker had gone {total:.0f} s, node-seconds {nodes.node_seconds:.0f}")
    assert nodes.most == 4
    assert "waiting up to 2 min for a node with {CPU: 1, accelerator: 1}" in done.stdout
    assert "torch in the driver: False" in done.stdout
    rows = load_results(str(run_uri))
    assert {row.status for row in rows} == {"completed"}
    assert Counter(row.trial_id for row in rows) == Counter(path.name for path in (run_uri / "trials").iterdir())
    for row in rows:  # an epoch that ran twice would have seen its images twice
        epochs = (run_uri / "trials" / row.trial_id / "history.jsonl").read_text().splitlines()
        assert [json.loads(epoch)["epoch"] for epoch in epochs] == list(range(1, row.epochs + 1))
        assert row.images_seen == row.epochs * rows[0].images_seen // rows[0].epochs


def test_a_run_that_no_node_comes_for_says_what_it_asked_for_and_what_may_come(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """The autoscaler may start nodes, as far as the configuration knows; here none ever will."""
    config = small_sweep(make_config).model_copy(
        update={
            "cluster": RunConfig.model_fields["cluster"].default.model_validate(
                {"wait_minutes": 0.02, "node_types": [{"cpus": 1, "resources": {"accelerator": 1}, "max_workers": 4}]}
            )
        }
    )
    with autoscaling_cluster({}, idle_seconds=60) as cluster:
        refused = sweep(cluster, config, tmp_path / "run")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "no node with {CPU: 1, accelerator: 1} came in 0.02 min (cluster.wait_minutes)" in refused.stderr
    assert "by cluster.node_types, up to 4 x {CPU: 1, accelerator: 1}" in refused.stderr
    assert not (tmp_path / "run").exists()
