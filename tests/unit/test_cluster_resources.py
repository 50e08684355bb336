"""What trials and tasks get of a cluster, and how many at once, by what the cluster can become. No Ray is started."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import requests

from tlray.config import RunConfig
from tlray.distributed import cluster as clusters
from tlray.distributed.autoscaling import Growth, NodeType, growth_of, of_kubernetes
from tlray.distributed.cluster import ClusterSummary, Node
from tlray.distributed.resources import cpu_tasks, model_tasks, trial_resources
from tlray.distributed.tasks import load_trial, take_given_gpu
from tlray.errors import ClusterError, StorageError, TlrayError, TrialError
from tlray.planning import planner as planning
from tlray.planning.footprint import CUDA_CONTEXT_BYTES, gpu_share

GB = 10**9
HEAD = Node(node_id="head", is_head=True, resources={"CPU": 0, "memory": 4e9, "node:__internal_head__": 1.0})
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


def workers(*shapes: dict[str, float]) -> ClusterSummary:
    nodes = [Node(node_id=f"worker{i}", is_head=False, resources=shape) for i, shape in enumerate(shapes)]
    return ClusterSummary(nodes=(HEAD, *nodes))


def growing(*types: tuple[dict[str, float], int], max_workers: int = 1000) -> ClusterSummary:
    kinds = tuple(NodeType(resources=shape, count=count) for shape, count in types)
    total = min(max_workers, sum(count for _, count in types))
    return ClusterSummary(nodes=(HEAD,), growth=Growth(types=kinds, max_workers=total, source="a file"))


def make_config(tmp_path: Path, data: dict[str, Any] | None = None, **sweep: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "test", "data": {"train": str(tmp_path), **(data or {})}, "backbones": ["resnet18"], "sweep": sweep}
    )


def test_a_cluster_without_a_worker_is_counted_as_what_it_may_grow_to(tmp_path: Path) -> None:
    resources = trial_resources(make_config(tmp_path), growing((GPU_NODE, 4), ({"CPU": 16.0}, 2)))
    assert (resources.gpus, resources.concurrent) == (1.0, 4)


def test_types_that_may_not_all_run_at_once_are_not_counted_twice(tmp_path: Path) -> None:
    """Spot nodes, and the same on demand where no spot node is to be had."""
    cluster = growing((GPU_NODE, 16), (GPU_NODE, 16), max_workers=16)
    assert trial_resources(make_config(tmp_path), cluster).concurrent == 16
    assert cluster.most("CPU") == 128


def test_a_worker_that_fits_no_single_node_is_refused_though_all_nodes_together_would_hold_it(tmp_path: Path) -> None:
    config = make_config(tmp_path, cpus_per_worker=6)
    with pytest.raises(ClusterError, match=r"\{CPU: 6\} on one node.* 2 x \{CPU: 4\}"):
        trial_resources(config, workers({"CPU": 4.0}, {"CPU": 4.0}))


def test_workers_are_counted_where_they_fit_not_by_the_sum_of_cpus(tmp_path: Path) -> None:
    cluster = workers({"CPU": 5.0}, {"CPU": 5.0})
    assert trial_resources(make_config(tmp_path, cpus_per_worker=4), cluster).concurrent == 2
    assert trial_resources(make_config(tmp_path, cpus_per_worker=2, workers_per_trial=2), cluster).concurrent == 2


def test_a_trial_that_the_cluster_can_never_hold_is_refused_with_what_it_can_have(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"needs 8 GPUs \(.*gpus_per_worker 8\) .*can have 4: .* 4 x \{CPU: 8"):
        trial_resources(make_config(tmp_path, gpus_per_worker=8), growing((GPU_NODE, 4)))
    with pytest.raises(ClusterError, match=r"needs 1 tpu .*has 0; .*cluster\.node_types"):
        trial_resources(make_config(tmp_path, resources_per_worker={"tpu": 1}), workers({"CPU": 4.0}))


def test_cpus_that_ray_data_decodes_with_are_left_free(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"stream": "ray_data", "stream_cpus": 3}, gpus_per_worker=0)
    assert trial_resources(config, growing(({"CPU": 4.0}, 4))).concurrent == 4
    assert trial_resources(make_config(tmp_path, gpus_per_worker=0), growing(({"CPU": 4.0}, 4))).concurrent == 16


def test_three_shares_of_a_third_are_a_gpu(tmp_path: Path) -> None:
    config = make_config(tmp_path, gpus_per_worker="auto")
    shares = {"a": gpu_share(20 * GB, 80 * GB), "b": 1.0}
    resources = trial_resources(config, workers(GPU_NODE), shares)
    assert resources.shares == {"a": 0.3333, "b": 1.0}
    assert resources.concurrent == 3
    assert (resources.gpus_of("a"), resources.gpus_of("b")) == (0.3333, 1.0)
    assert trial_resources(config, workers(GPU_NODE)).gpus == 1.0  # before the plan knows more


def test_shares_are_for_no_trial_that_did_not_ask_for_them(tmp_path: Path) -> None:
    assert trial_resources(make_config(tmp_path), workers(GPU_NODE), {"a": 0.5}).gpus_of("a") == 1.0


@pytest.mark.parametrize(("needed", "share"), [(1, 0.125), (20, 0.3333), (30, 0.5), (50, 1.0), (500, 1.0)])
def test_as_many_trials_share_a_gpu_as_its_memory_holds_with_head_room(needed: int, share: float) -> None:
    assert gpu_share(needed * GB, 80 * GB) == share
    if share < 1:
        assert int(1 / share) * (needed * GB + CUDA_CONTEXT_BYTES) < 80 * GB


@pytest.mark.parametrize("gpus", [0.5, "auto"])
def test_workers_that_train_together_never_share_a_gpu(tmp_path: Path, gpus: Any) -> None:
    with pytest.raises(ValueError, match="whole GPUs"):
        make_config(tmp_path, gpus_per_worker=gpus, workers_per_trial=2)


def test_decoding_goes_to_nodes_without_gpus_and_models_to_those_with(tmp_path: Path) -> None:
    cluster = growing((GPU_NODE, 4), ({"CPU": 16.0}, 2))
    models, decoding = model_tasks(make_config(tmp_path).sweep, cluster), cpu_tasks(cluster)
    assert (models.cpus, models.gpus, models.concurrent) == (8.0, 1.0, 4)
    assert (decoding.cpus, decoding.gpus) == (4.0, 0.0)
    assert cpu_tasks(workers(GPU_NODE, GPU_NODE)).concurrent == 4  # where every node has a GPU, theirs


def test_models_go_to_nodes_that_have_what_trials_ask_for(tmp_path: Path) -> None:
    sweep = make_config(tmp_path, resources_per_worker={"accelerator": 1}).sweep
    tasks = model_tasks(sweep, growing(({"CPU": 2.0, "accelerator": 1.0}, 4), ({"CPU": 16.0}, 2)))
    assert tasks.options == {"num_cpus": 2.0, "num_gpus": 0.0, "resources": {"accelerator": 1}}
    assert tasks.concurrent == 4


def test_an_autoscaler_that_may_start_nothing_is_none() -> None:
    head_only = {"max_workers": 0, "available_node_types": {"head": {"resources": {"CPU": 4}, "max_workers": 0}}}
    assert growth_of(head_only, "a file") is None
    launcher = {"max_workers": 3, "available_node_types": {"w": {"resources": {"CPU": 4}, "max_workers": 10}}}
    growth = growth_of(launcher, "a file")
    assert growth is not None
    assert (growth.types[0].count, growth.max_workers) == (10, 3)


def test_the_cluster_is_described_by_what_is_there_and_what_may_come() -> None:
    assert growing((GPU_NODE, 4)).in_words() == "1 x {} and, by a file, up to 4 x {CPU: 8, GPU: 1}"


def test_a_task_on_a_node_that_does_not_see_the_run_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"does not see .*/run, a folder of the machine where the run was started"):
        load_trial(str(tmp_path / "run"), "001")


def test_a_process_with_a_gpu_that_torch_does_not_see_refuses_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [3])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TrialError, match=r"GPU 3, and torch .* sees none"):
        take_given_gpu()


def test_a_pod_reads_what_its_own_ray_cluster_may_grow_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    template = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits, "requests": limits}}]}}
    group = {"groupName": "gpu", "minReplicas": 0, "maxReplicas": 5, "rayStartParams": {}, "template": template}
    head = {"rayStartParams": {"num-cpus": "0"}, "template": template}
    cluster = {
        "metadata": {"name": "birds", "namespace": "ml"},
        "spec": {"enableInTreeAutoscaling": True, "headGroupSpec": head, "workerGroupSpecs": [group]},
    }
    asked: list[str] = []

    def answer(client: Any, path: str) -> Any:
        asked.append(path)
        return cluster

    (tmp_path / "namespace").write_text("ml")
    monkeypatch.setattr("tlray.distributed.autoscaling.NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient.get", answer)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "birds")
    growth = of_kubernetes()
    assert asked == ["rayclusters/birds"]
    assert growth is not None
    assert (growth.max_workers, growth.types[0].resources["CPU"], growth.types[0].resources["GPU"]) == (5, 8, 1)
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert of_kubernetes() is None


def test_a_pod_that_may_not_read_its_ray_cluster_says_so_and_counts_on_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = itertools.count(1)

    def refuse(client: Any, path: str) -> Any:
        raise requests.HTTPError(f"403 Forbidden, request {next(numbers)}")

    (tmp_path / "namespace").write_text("ml")
    monkeypatch.setattr("tlray.distributed.autoscaling.NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient.get", refuse)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "finches")
    assert of_kubernetes() is None
    assert of_kubernetes() is None
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "RayCluster finches cannot be read (403 Forbidden, request 1)" in said
    assert "say in cluster.node_types how far" in said


def test_the_plan_says_which_trials_share_a_gpu(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's size alone is made up: two gigabytes, of which a linear probe of the tiny network takes a third."""
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    config = RunConfig.model_validate(
        {
            "name": "test",
            "storage": str(tmp_path),
            "data": {"train": str(image_folder)},
            "backbones": [network],
            "baseline": {"backbone": network},
            "strategies": ["linear_probe"],
            "training": {"epochs": 1, "batch_size": 8},
            "sweep": {"gpus_per_worker": "auto"},
        }
    )
    monkeypatch.setattr(planning, "gpu_bytes", lambda: 2 * 2**30)
    plan = planning.plan_run(config).plan
    assert {trial.gpu_share for trial in plan.trials} == {0.3333}
    assert (
        "sweep.gpus_per_worker auto: of a GPU, by the memory and the time of it that they need, 2 trials 0.3333"
        in plan.notes[-1]
    )
    monkeypatch.setattr(planning, "gpu_bytes", lambda: 0)
    assert {trial.gpu_share for trial in planning.plan_run(config).plan.trials} == {1.0}


def test_a_ray_of_its_own_that_does_not_start_is_not_blamed_on_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """`local` is Ray's word for a Ray of the command's own, here one whose gcs_server is killed as it comes up."""

    def start() -> None:
        raise RuntimeError(".Please check gcs_server.out for details. Last connection error: None")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(clusters, "start_local_ray", start)
    with pytest.raises(TlrayError, match=r"^Ray cannot be started on this machine: Please check") as caught:
        clusters.connect()
    assert not isinstance(caught.value, ClusterError)
    assert caught.value.exit_code == 1
