"""cluster.yaml and deploy/aws, without AWS: Ray's own schema, its launcher against a simulated EC2, its autoscaler."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ray = pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent.parent
AWS = ROOT / "deploy" / "aws"
ANYWHERE = {"0.0.0.0/0", "::/0"}

# What S3 asks for when tlray calls one of boto3's methods.
S3_ACTIONS = {
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "put_object": {"s3:PutObject"},
    "upload_fileobj": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
    "head_bucket": {"s3:ListBucket"},
}


def cluster() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(config, dict)
    return config


def prepared() -> dict[str, Any]:
    """cluster.yaml as `ray up` completes it before it talks to AWS."""
    from ray.autoscaler._private.util import prepare_config

    complete = prepare_config(cluster())
    assert isinstance(complete, dict)
    return complete


def policy(name: str) -> list[dict[str, Any]]:
    statements = json.loads((AWS / name).read_text())["Statement"]
    assert isinstance(statements, list)
    return statements


def allowed_actions(name: str) -> set[str]:
    lists = [line["Action"] if isinstance(line["Action"], list) else [line["Action"]] for line in policy(name)]
    return {action for actions in lists for action in actions}


def test_rays_own_schema_accepts_the_cluster_and_refuses_it_with_a_misspelt_field() -> None:
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared())
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config({**prepared(), "idle_timeout_minute": 5})


def test_there_is_a_small_head_and_workers_of_three_kinds_from_zero_to_the_clusters_limit() -> None:
    config = prepared()
    types = config["available_node_types"]
    workers = {name: types[name] for name in types if name != config["head_node_type"]}
    assert all(worker["min_workers"] == 0 < worker["max_workers"] for worker in workers.values())
    assert sum(worker["max_workers"] for worker in workers.values()) == config["max_workers"]
    market = {name: "InstanceMarketOptions" in worker["node_config"] for name, worker in workers.items()}
    assert market == {"gpu_spot": True, "gpu_on_demand": False, "cpu": True}
    assert types["gpu_spot"]["priority"] > types["gpu_on_demand"]["priority"]
    assert types["head"]["resources"] == {"CPU": 0}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Ray's launcher makes of cluster.yaml in an EC2 that moto plays: configuration, instances, firewall rules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where the launcher keeps its SSH key
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made-up")
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        return launch()


def launch() -> dict[str, Any]:
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    region = cluster()["provider"]["region"]
    with mock_aws():
        ec2, iam = boto3.client("ec2", region_name=region), boto3.client("iam")
        # as docs/aws.md makes them
        network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="tlray", Description="tlray", VpcId=network)["GroupId"]
        own = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=own)
        for profile in ("tlray-head", "tlray-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        config = AWSNodeProvider.fillout_available_node_types_resources(prepared())
        config = AWSNodeProvider.bootstrap_config(config)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, node_type in config["available_node_types"].items():
            provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
        instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
        used = sorted({g["GroupId"] for i in instances for g in i["SecurityGroups"]})
        groups = ec2.describe_security_groups(GroupIds=used)
    tag = "ray-user-node-type"
    by_type = {next(t["Value"] for t in i["Tags"] if t["Key"] == tag): i for i in instances}
    return {"config": config, "instances": by_type, "groups": groups["SecurityGroups"]}


def test_ec2_takes_every_node_type_as_it_stands(launched: dict[str, Any]) -> None:
    instances = launched["instances"]
    assert {name for name, i in instances.items() if i.get("InstanceLifecycle") == "spot"} == {"gpu_spot", "cpu"}
    profiles = {name: i["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, i in instances.items()}
    workers = dict.fromkeys(("gpu_spot", "gpu_on_demand", "cpu"), "tlray-worker")
    assert profiles == {"head": "tlray-head", **workers}
    assert all(instance["MetadataOptions"]["HttpTokens"] == "required" for instance in instances.values())


def test_no_port_of_any_node_is_open_to_the_internet(launched: dict[str, Any]) -> None:
    rules = [rule for group in launched["groups"] for rule in group["IpPermissions"]]
    sources = {r[key] for rule in rules for name, key in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"))
               for r in rule[name]}  # fmt: skip
    assert rules
    assert not sources & ANYWHERE
    assert {group["GroupName"] for group in launched["groups"]} == {"tlray"}


def test_gpu_types_have_gpus_local_nvme_and_a_price_that_is_lower_on_the_spot_market(launched: dict[str, Any]) -> None:
    types = launched["config"]["available_node_types"]
    gpus = {name: node_type["resources"].get("GPU", 0) for name, node_type in types.items()}
    assert gpus == {"head": 0, "gpu_spot": 1, "gpu_on_demand": 1, "cpu": 0}
    assert types["cpu"]["resources"]["CPU"] > types["gpu_spot"]["resources"]["CPU"]


def requested(launched: dict[str, Any], *demand: dict[str, float]) -> dict[str, int]:
    """The nodes that Ray's autoscaler asks for, by type, when tasks and trials wait for `demand`."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = {key: value for key, value in launched["config"].items() if key != "head_node"}
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(d) for d in demand]),
        )
    )
    assert not reply.infeasible_resource_requests or len(demand) > 4, reply.infeasible_resource_requests
    wanted: Counter[str] = Counter()
    for launch_request in reply.to_launch:
        wanted[launch_request.instance_type] += launch_request.count
    return dict(wanted)


TRIAL = {"CPU": 1.0, "GPU": 1.0}


def test_trials_that_want_a_gpu_get_spot_nodes_first_and_on_demand_ones_beyond_their_number(
    launched: dict[str, Any],
) -> None:
    assert requested(launched, TRIAL) == {"gpu_spot": 1}
    assert requested(launched, *[TRIAL] * 4) == {"gpu_spot": 4}
    assert requested(launched, *[TRIAL] * 6) == {"gpu_spot": 4, "gpu_on_demand": 2}
    assert requested(launched, *[TRIAL] * 100) == {"gpu_spot": 4, "gpu_on_demand": 4}


def test_what_the_guide_says_of_refused_spot_requests_is_so(launched: dict[str, Any]) -> None:
    """Once Ray learns from refused requests, this fails, and docs/aws.md and cluster.yaml can promise more."""
    from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
    from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance

    asked_for = Instance(instance_id="1", instance_type="gpu_spot", launch_request_id="r", status=Instance.REQUESTED)
    refused = ("r", "gpu_spot")
    error = LaunchNodeError("gpu_spot", 1, "r", 0)
    event = Reconciler._try_resolve_pending_allocation(asked_for, {}, {refused: error}, {refused: 1})
    event.instance_type = "gpu_spot"
    monitor = CloudResourceMonitor()
    monitor.notify([event])
    assert event.new_instance_status == Instance.ALLOCATION_FAILED
    assert monitor.get_recoverable_resource_availabilities() == {}  # nothing that would speak against spot


def test_work_without_a_gpu_starts_no_gpu_node(launched: dict[str, Any]) -> None:
    assert requested(launched, *[{"CPU": 4.0}] * 4) == {"cpu": 1}
    assert requested(launched) == {}


def test_the_cluster_carries_the_repositorys_own_versions() -> None:
    mounts = cluster()["file_mounts"]
    assert {Path(local).name for local in mounts.values()} >= {"pyproject.toml", "constraints.txt", "setup_node.sh"}
    assert all((ROOT / local).is_file() for local in mounts.values())
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    chosen = re.search(r"^python=([\d.]+)$", (AWS / "setup_node.sh").read_text(), flags=re.MULTILINE)
    assert oldest is not None
    assert chosen is not None
    assert chosen[1] == oldest[1]  # what the tests run with


def start_options(command: str) -> dict[str, Any]:
    """The options of the `ray start` in a start command, as Ray's own command line understands them."""
    from ray.scripts.scripts import start

    words = shlex.split(command[command.index("ray start") :])[2:]
    return start.make_context("ray start", words).params


def test_ray_start_understands_the_start_commands_and_listens_to_nobody_but_the_head_itself() -> None:
    config = cluster()
    head = start_options(config["head_start_ray_commands"][-1])
    worker = start_options(config["worker_start_ray_commands"][-1])
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == "$RAY_HEAD_IP:6379"
    assert head["object_spilling_directory"] == worker["object_spilling_directory"] == "$HOME/.cache/ray-spill"


def test_every_mention_of_the_region_names_the_same_one() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    region = cluster()["provider"]["region"]
    assert set(re.findall(r"(?:AWS_REGION=|--region |^  region: )([a-z0-9-]+)", text, flags=re.MULTILINE)) == {region}
    assert all(zone.startswith(region) for zone in cluster()["provider"]["availability_zone"].split(","))


def test_the_bucket_policy_allows_what_tlray_asks_of_s3_and_nothing_else() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tlray" / "storage").glob("*.py"))
    called = set(re.findall(r"\.(?:client|once)\.([a-z_0-9]+)\(", sources)) - {"generate_presigned_url"}
    called |= {name for name in S3_ACTIONS if re.search(rf"\b{name}\b", sources)}
    assert called <= set(S3_ACTIONS), f"say in S3_ACTIONS what S3 asks for: {called - set(S3_ACTIONS)}"
    assert {action for name in called for action in S3_ACTIONS[name]} == allowed_actions("buckets-policy.json")


def test_nothing_but_looking_at_instances_is_allowed_on_everything() -> None:
    for name in ("buckets-policy.json", "head-policy.json"):
        wide = [line["Action"] for line in policy(name) if line["Resource"] in ("*", ["*"])]
        assert wide in ([], ["ec2:DescribeInstances"]), name
        assert not any("*" in action for action in allowed_actions(name)), name


def test_the_head_may_end_and_tag_only_instances_of_this_cluster() -> None:
    name = cluster()["cluster_name"]
    for line in policy("head-policy.json"):
        if "TerminateInstances" in str(line["Action"]):
            assert line["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": name}}
    tags = [line["Condition"] for line in policy("head-policy.json") if line["Action"] == "iam:PassRole"]
    assert tags == [{"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}]
