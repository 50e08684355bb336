"""deploy/kubernetes, without a cluster: the custom resources' own schemas, KubeRay's rules, Ray's autoscaler, versions.

tests/data/crd_schemas.json.gz holds the schemas of KubeRay 1.7.0 and Karpenter 1.14.1 (both Apache-2.0), as
scripts/make_crd_schemas.py makes them: without descriptions, and strict, so that a field that the API server would drop
in silence is an error.
"""

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import tlray

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
SCHEMAS = json.loads(gzip.decompress((ROOT / "tests" / "data" / "crd_schemas.json.gz").read_bytes()))
WITH_A_CLUSTER = ["raycluster.yaml", "sweep-job.yaml", "retrain-job.yaml"]
GPU = "nvidia.com/gpu"

# Kubernetes' own kinds: the fields of those objects that stand here, from the API reference of Kubernetes 1.34.
FIELDS = {
    "ServiceAccount": {"automountServiceAccountToken", "imagePullSecrets", "secrets"},
    "Role": {"rules"},
    "RoleBinding": {"roleRef", "subjects"},
    "CronJob": {"spec"},
    "Kustomization": {"namespace", "resources", "configMapGenerator", "generatorOptions"},
}
CRON_FIELDS = {"concurrencyPolicy", "failedJobsHistoryLimit", "jobTemplate", "schedule", "startingDeadlineSeconds",
               "successfulJobsHistoryLimit", "suspend", "timeZone"}  # fmt: skip
JOB_FIELDS = {"activeDeadlineSeconds", "backoffLimit", "completions", "parallelism", "template",
              "ttlSecondsAfterFinished", "suspend"}  # fmt: skip


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def everything() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in documents(path.name):
            yield path.name, document


def schema_of(resource: str) -> dict[str, Any]:
    return {**SCHEMAS["schemas"][resource], "definitions": SCHEMAS["definitions"]}


def errors(document: dict[str, Any]) -> list[str]:
    """What the schema of a custom resource has against it."""
    schema = schema_of(f"{document['apiVersion']}/{document['kind']}")
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def cluster_in(name: str) -> dict[str, Any]:
    """The RayCluster's specification in a manifest, alone or as part of a job."""
    spec = documents(name)[0]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert isinstance(spec, dict)
    return spec


def pod_specs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    pods = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **pods}


CUSTOM = [(name, document) for name, document in everything()
          if f"{document['apiVersion']}/{document['kind']}" in SCHEMAS["schemas"]]  # fmt: skip


@pytest.mark.parametrize(("name", "document"), CUSTOM, ids=[name for name, _ in CUSTOM])
def test_a_custom_resource_is_what_its_definition_asks_for(name: str, document: dict[str, Any]) -> None:
    assert errors(document) == []


def test_a_misspelt_field_deep_in_a_pod_is_found() -> None:
    cluster = documents("raycluster.yaml")[0]
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["toleration"] = []
    assert [error for error in errors(cluster) if "'toleration' was unexpected" in error]


def test_every_manifest_is_checked_against_something() -> None:
    kinds = {document["kind"] for _, document in everything()}
    assert kinds == {"RayCluster", "RayJob", "NodePool"} | set(FIELDS)
    for name, document in everything():
        if document["kind"] in FIELDS:
            assert set(document) <= {"apiVersion", "kind", "metadata"} | FIELDS[document["kind"]], name


def test_the_schedule_is_a_cron_job_that_kubernetes_knows_all_fields_of() -> None:
    cron = documents("retrain-cron.yaml")[0]["spec"]
    job = cron["jobTemplate"]["spec"]
    assert set(cron) <= CRON_FIELDS
    assert set(job) <= JOB_FIELDS
    pod = schema_of("ray.io/v1/RayJob")["properties"]["spec"]["properties"]["submitterPodTemplate"]
    jsonschema.Draft202012Validator({**pod, "definitions": SCHEMAS["definitions"]}).validate(job["template"])


@pytest.mark.parametrize("name", WITH_A_CLUSTER)
def test_every_manifest_has_the_same_cluster(name: str) -> None:
    assert cluster_in(name) == cluster_in("raycluster.yaml")


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert found is not None
    return found[1]


def images() -> dict[str, set[str]]:
    """Every image that a manifest names, with the manifests."""
    found: dict[str, set[str]] = {}
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for image in re.findall(r"image: (?:&image )?(\S+)", path.read_text()):
            if not image.startswith("*"):
                found.setdefault(image, set()).add(path.name)
    return found


def test_manifests_run_the_repositorys_own_versions() -> None:
    assert {cluster_in(name)["rayVersion"] for name in WITH_A_CLUSTER} == {pinned("ray")}
    ours = f"REGISTRY/tlray:{tlray.__version__}@DIGEST"
    assert images()[ours] == set(WITH_A_CLUSTER)
    others = set(images()) - {ours}
    assert all(re.fullmatch(r"registry\.k8s\.io/kubectl:v\d+\.\d+\.\d+@KUBECTL-DIGEST", image) for image in others)


def test_the_guide_puts_a_digest_in_the_place_of_every_one_that_is_missing() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    assert {image.rpartition("@")[2] for image in images()} == {"DIGEST", "KUBECTL-DIGEST"}
    assert "s|REGISTRY/tlray:0.1.0@DIGEST|" in guide
    assert "s|@KUBECTL-DIGEST|" in guide
    assert "--build-arg PYTHON_DIGEST=" in guide


def test_the_image_has_the_pinned_packages_on_the_python_that_the_tests_run_with() -> None:
    text = (KUBERNETES / "Dockerfile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'requires-python = ">=([\d.]+)"', project)
    backend = re.search(r"hatchling>=([\d.]+)", project)
    assert oldest is not None
    assert backend is not None
    assert re.findall(r"^FROM (\S+)$", text, flags=re.MULTILINE) == [
        f"python:{oldest[1]}-slim-bookworm@${{PYTHON_DIGEST}}"
    ]
    assert "ARG PYTHON_DIGEST\n" in text  # without a value: a build without one ends
    assert "--requirements pyproject.toml --constraints constraints.txt" in text
    installed = dict(re.findall(r"\b([a-z]+)==([\d.]+)", text))
    setup = (ROOT / "deploy" / "aws" / "setup_node.sh").read_text()
    assert f"\nuv={installed.pop('uv')}\n" in setup  # nodes of both kinds of cluster are installed by one version
    assert tuple(map(int, installed.pop("hatchling").split("."))) >= tuple(map(int, backend[1].split(".")))
    assert installed == {}
    assert f"tlray:{tlray.__version__} " in text


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    copied = [source for line in re.findall(r"^COPY (.+)$", (KUBERNETES / "Dockerfile").read_text(), re.MULTILINE)
              for source in line.split()[:-1]]  # fmt: skip
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"pyproject.toml", "constraints.txt", "tlray", "jobs", "configs"} <= set(copied)
    assert all((ROOT / source).exists() and f"!{source}" in rules for source in copied)
    assert "*" in rules


def test_each_kind_of_worker_has_nodes_of_its_own_which_the_head_stays_off() -> None:
    pods = pod_specs(cluster_in("raycluster.yaml"))
    wants_gpus = {name for name, pod in pods.items() if GPU in pod["containers"][0]["resources"]["limits"]}
    tolerated = {
        name: {(t["key"], t["operator"], t["effect"]) for t in pod.get("tolerations", [])} for name, pod in pods.items()
    }
    pools = {pool["metadata"]["name"]: pool["spec"]["template"]["spec"] for pool in documents("nodepools.yaml")}
    taints = {
        name: {(t["key"], "Exists", t["effect"]) for t in pools[f"tlray-{name}"]["taints"]} for name in ("gpu", "cpu")
    }
    assert wants_gpus == {"gpu"}
    assert tolerated == {"head": set(), **taints}
    assert taints["gpu"] == {(GPU, "Exists", "NoSchedule")}
    assert taints["cpu"] != taints["gpu"]


def test_no_pod_is_moved_to_a_cheaper_node_while_it_works() -> None:
    cluster = cluster_in("raycluster.yaml")
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    assert all(t["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"} for t in templates)
    disruptions = [pool["spec"]["disruption"]["consolidationPolicy"] for pool in documents("nodepools.yaml")]
    assert set(disruptions) == {"WhenEmpty"}


def test_no_pod_runs_as_root_and_only_the_head_may_talk_to_kubernetes() -> None:
    pods = pod_specs(cluster_in("raycluster.yaml"))
    cron = documents("retrain-cron.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for pod in (*pods.values(), cron):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert {name for name, pod in pods.items() if pod.get("automountServiceAccountToken", True)} == {"head"}
    assert cluster_in("raycluster.yaml")["authOptions"] == {"mode": "token"}


def test_the_schedule_may_create_ray_jobs_and_nothing_else() -> None:
    roles = [document for document in documents("accounts.yaml") if document["kind"] == "Role"]
    assert [role["rules"] for role in roles] == [
        [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    ]
    accounts = {d["metadata"]["name"] for d in documents("accounts.yaml") if d["kind"] == "ServiceAccount"}
    used = {pod["serviceAccountName"] for pod in pod_specs(cluster_in("raycluster.yaml")).values()}
    cron = documents("retrain-cron.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert accounts == used | {cron["serviceAccountName"]}


def test_two_retrainings_cannot_exist_at_once_and_the_last_one_is_gone_when_the_next_is_due() -> None:
    cron = documents("retrain-cron.yaml")[0]["spec"]
    job = documents("retrain-job.yaml")[0]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert "name" in job["metadata"]  # no generateName: Kubernetes refuses a second one
    manifest = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    generated = documents("kustomization.yaml")[0]["configMapGenerator"]
    assert generated == [{"name": "tlray-retrain", "files": [manifest.rpartition("/")[2]]}]
    assert cron["schedule"] == "0 2 * * *"
    rules = job["spec"]["deletionStrategy"]["deletionRules"]
    gone = {str({**rule["condition"], "ttlSeconds": 0}): rule["condition"]["ttlSeconds"]
            for rule in rules if rule["policy"] == "DeleteSelf"}  # fmt: skip
    assert len(gone) == 3  # after success, failure, and when the job could not be started
    assert job["spec"]["activeDeadlineSeconds"] + max(gone.values()) < 24 * 3600
    for rule in rules:  # KubeRay: the cluster goes no later than the job
        if rule["policy"] == "DeleteCluster":
            assert rule["condition"]["ttlSeconds"] <= gone[str({**rule["condition"], "ttlSeconds": 0})]


@pytest.mark.parametrize(("code", "outcome"), [(0, 0), (3, 0), (1, 1), (2, 1), (130, 1)])
def test_a_retraining_with_nothing_to_do_is_no_failed_job(code: int, outcome: int) -> None:
    entry_point = documents("retrain-job.yaml")[0]["spec"]["entrypoint"]
    assert entry_point.startswith("python ")
    done = subprocess.run(["sh", "-c", entry_point.replace("python ", f"sh -c 'exit {code}' ", 1)], check=False)
    assert done.returncode == outcome


@pytest.mark.parametrize(("name", "attempts"), [("sweep-job.yaml", 0), ("retrain-job.yaml", 1)])
def test_a_jobs_driver_needs_no_gpu_and_only_a_retraining_is_tried_again(name: str, attempts: int) -> None:
    spec = documents(name)[0]["spec"]
    assert (spec["entrypointNumCpus"], spec.get("entrypointNumGpus", 0), spec["backoffLimit"]) == (0, 0, attempts)
    assert spec["activeDeadlineSeconds"] > 0
    script = Path(shlex.split(spec["entrypoint"])[1])
    assert script.parts[:3] == ("/", "app", "jobs")
    assert (ROOT / "jobs").is_dir()


def test_rays_autoscaler_brings_the_right_kind_of_pod_for_each_demand() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    resource = documents("raycluster.yaml")[0]
    resource["metadata"]["namespace"] = "tlray"
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)

    def requested(*demand: dict[str, float]) -> dict[str, int]:
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(d) for d in demand]),
        )
        reply = ResourceDemandScheduler(event_logger=None).schedule(request)
        return {launch.instance_type: launch.count for launch in reply.to_launch}

    assert requested() == {}
    assert requested({"CPU": 4.0}) == {"cpu": 1}
    assert requested(*[{"CPU": 1.0, "GPU": 1.0}] * 3) == {"gpu": 3}
    assert config.get_idle_timeout_s() == 300
