"""Where rounds take place: one folder, an environment of its own, a Ray that stays, and an S3 server behind a proxy.

Ray stays up between rounds that do not kill it: a start takes longer than many a round. What must be killed whole is
started by the round's own command. Everything is started when a kind of round first asks for it.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from fault_proxy import FaultProxy, fault_proxy
from ray_clusters import RunningCluster, fixed_cluster, start_worker
from s3server import running_s3_server

from tests.chaos.forks import Forked
from tests.chaos.places import BucketPlace, LocalPlace, Place
from tests.chaos.processes import MARK, Program, end_all_of, name_of, of_cluster, start
from tests.chaos.sweep import draw_images, sweep_config, sweep_flow

ROOT = Path(__file__).parent.parent.parent
PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "RAY_worker_niceness")


@dataclass
class Setting:
    """`folder` has a short path: the sockets of Ray lie below it."""

    folder: Path
    limit: float  # seconds for one command
    with_s3: bool  # whether the Ray that stays reaches the S3 server
    address: str | None = None  # of a Ray that is there already, with `ray_environment`
    ray_environment: Mapping[str, str] = field(default_factory=dict)
    _workers: list[psutil.Process] = field(default_factory=list)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "Setting":
        for name in ("home", "live", "logs", "r"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self.images.exists():
            draw_images(self.images)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def live(self) -> Path:
        """Files of the round that takes place: `live/runs` is what is kept and put back."""
        return self.folder / "live"

    @property
    def temporary(self) -> Path:
        """The temporary folder of the commands."""
        return self.live / "tmp"

    @cached_property
    def local_place(self) -> LocalPlace:
        return LocalPlace(self.live / "runs")

    @cached_property
    def cluster(self) -> RunningCluster | None:
        """The Ray that stays: two CPUs, on the node that drivers run on; None for one that was there."""
        if self.address is not None:
            return None
        with _environment_of(self.base_environment() | (self.s3_environment if self.with_s3 else {})):
            return self._open.enter_context(fixed_cluster(num_cpus=2))

    @cached_property
    def nodes(self) -> RunningCluster:
        """A head that only leads, to which `node` adds workers."""
        with _environment_of(self.base_environment()):
            return self._open.enter_context(fixed_cluster())

    @cached_property
    def proxy(self) -> FaultProxy:
        """In front of an S3 server that holds the sweep's images and runs."""
        folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self._server = self._open.enter_context(running_s3_server(folder))
        return self._open.enter_context(fault_proxy(self._server.endpoint))

    @cached_property
    def bucket(self) -> BucketPlace:
        import boto3

        names = self.s3_environment
        client = boto3.client(
            "s3",
            endpoint_url=self._server.endpoint,
            aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
            region_name=names["AWS_REGION"],
        )
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        client.create_bucket(Bucket=name)
        for path in self.images.rglob("*.png"):
            client.put_object(Bucket=name, Key=f"images/{path.relative_to(self.images)}", Body=path.read_bytes())
        return BucketPlace(client, name, "runs")

    @property
    def s3_environment(self) -> dict[str, str]:
        endpoint = self.proxy.endpoint
        return {**self._server.environment, "AWS_ENDPOINT_URL": endpoint}  # the proxy's, which starts the server

    def base_environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home" / "cache"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def environment(self, ray: str) -> dict[str, str]:
        """Of a command; `ray`: shared, s3 (the same, and the S3 server), own (a Ray that it starts), or nodes."""
        own = {
            **self.base_environment(),
            MARK: uuid.uuid4().hex,
            "TMPDIR": str(self.temporary),
        }
        if ray == "own":
            return own | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(self.folder / "r")}
        if ray == "nodes":
            return own | _way_to(self.nodes, None, {})
        own |= self._way_to_ray
        return own | self.s3_environment if ray == "s3" else own

    @property
    def _way_to_ray(self) -> dict[str, str]:
        return _way_to(self.cluster, self.address, self.ray_environment)

    def start(
        self, arguments: Sequence[str], ray: str, log: Path, *, forked: bool = True, largest_file: int | None = None
    ) -> Program:
        """`forked`: quicker than in the usual way, where the Ray that stays is joined; see forks.py."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        joined = None if ray == "own" else self.nodes if ray == "nodes" else self.cluster
        folder = joined.folder if joined is not None else None
        environment = self.environment(ray)
        if forked and largest_file is None and ray in ("shared", "s3"):
            # Ray reads how to show who one is when it is imported
            with _environment_of(self.base_environment() | self._way_to_ray):
                process: Any = Forked(arguments, environment, log)
        else:
            process = start(arguments, environment, log, largest_file=largest_file)
        program = Program(tuple(arguments), process, log, environment[MARK], self.limit, folder)
        self._open.callback(end_all_of, program)
        return program

    def busy_workers(self) -> list[str]:
        """What the Ray that stays is at work on."""
        if self.address is not None or self.cluster is None:
            return []
        names = [name_of(process) for process in of_cluster(self.cluster.folder)]
        return [name for name in names if not name.startswith("ray::IDLE")]

    def live_nodes(self) -> list[psutil.Process]:
        """The workers of `nodes` that are there."""
        return [node for node in self._workers if node.is_running()]

    def add_node(self) -> psutil.Process:
        node = start_worker(self.nodes, num_cpus=1)
        self._workers.append(node)
        return node


def _way_to(cluster: RunningCluster | None, address: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    if cluster is None:
        return {**environment, "RAY_ADDRESS": address or ""}
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    return {name: cluster.environment[name] for name in names}


@contextlib.contextmanager
def _environment_of(environment: Mapping[str, str]) -> Any:
    """This process's environment while a cluster starts, which takes it over."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def sweep_on(setting: Setting, place: Place, ray: str) -> Any:
    """The flow of the sweep whose runs lie at a place."""
    images = f"s3://{place.uri.split('/')[2]}/images" if place.uri.startswith("s3://") else str(setting.images)
    config = setting.folder / f"{ray}.yaml"
    config.write_text(sweep_config(images, place.uri, setting.live / "cache"))
    return sweep_flow(config)
