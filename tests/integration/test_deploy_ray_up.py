"""cluster.yaml from `ray up` to `ray down`: EC2 is moto's, and what goes to nodes by SSH is written down instead."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WRITE_DOWN = """#!{python}
import json, os, sys
with open(os.environ["SAID"], "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=file)
"""


@pytest.fixture
def account(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An AWS account as docs/aws.md leaves it -> the environment of somebody who works with it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("ssh", "rsync"):
        (binaries / name).write_text(WRITE_DOWN.format(python=sys.executable))
        (binaries / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{binaries}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "SAID": str(tmp_path / "said.jsonl"),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            ec2, iam = boto3.client("ec2"), boto3.client("iam")
            group = ec2.create_security_group(GroupName="tlray", Description="Ray cluster")["GroupId"]
            own = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
            ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=own)
            for role in ("tlray-head", "tlray-worker"):
                iam.create_instance_profile(InstanceProfileName=role)
            yield environment
    finally:
        server.stop()


def ray(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).parent / "ray", *words, "cluster.yaml"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(environment: dict[str, str]) -> list[list[str]]:
    return [json.loads(line) for line in Path(environment["SAID"]).read_text().splitlines()]


def instances() -> list[dict[str, Any]]:
    import boto3

    return [i for r in boto3.client("ec2").describe_instances()["Reservations"] for i in r["Instances"]]


def test_ray_up_makes_a_head_over_systems_manager_and_ray_down_ends_it(account: dict[str, str]) -> None:
    ray(account, "up", "-y", "--no-config-cache")
    (head,) = instances()
    assert head["InstanceType"] == "m6i.xlarge"
    lines = said(account)
    target = f"ubuntu@{head['InstanceId']}"  # no address: the proxy finds it by its id
    for words in lines:
        assert any(word == target or word.startswith(f"{target}:") for word in words)
        assert "AWS-StartSSHSession" in " ".join(words)
    copied = {words[-1].partition(":")[2] for words in lines if words[0] == "rsync"}
    assert copied >= {f"~/tlray-setup/{name}" for name in ("pyproject.toml", "constraints.txt", "setup_node.sh")}
    commands = [words[-1] for words in lines if words[0] == "ssh"]
    done = [next(n for n, command in enumerate(commands) if part in command) for part in ("setup_node.sh", "ray start")]
    assert done == sorted(done)
    assert '"CPU":0' in commands[-1]
    assert "--dashboard-host=127.0.0.1" in commands[-1]

    ray(account, "down", "-y")
    assert [instance["State"]["Name"] for instance in instances()] == ["terminated"]
