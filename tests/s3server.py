"""An S3 server for the tests: Ceph's RADOS Gateway where its packages are installed, else moto's server.

    with running_s3_server(folder) as server:
        os.environ.update(server.environment)

One monitor, one OSD that keeps everything in memory, one gateway; all on free ports of 127.0.0.1, without cephx.
`apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common` provides the programs (Debian, Ubuntu).
TLRAY_TEST_S3=moto in the environment asks for moto's server although they are there.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin", "monmaptool")
STARTUP_SECONDS = 90  # it takes 3 to 5 on an idle machine
PR_SET_PDEATHSIG = 1

CEPH_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
auth cluster required = none
auth service required = none
auth client required = none
# without cephx there is no key to encrypt the gateway's connection to the monitor with
ms mon client mode = crc
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
ms bind ipv6 = false
ms bind msgr1 = false
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
log file = {folder}/$name.log
keyring = {folder}/keyring
# a pool is made in moments when it has one copy and one placement group
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
mon data avail crit = 1
paxos propose interval = 0.1
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 32
rgw override bucket index max shards = 1
rgw run sync thread = false
"""


@dataclass(frozen=True)
class S3Server:
    """A running server; `environment` is all that boto3, pyarrow or a subprocess needs to use it."""

    kind: Literal["ceph", "moto"]
    endpoint: str
    environment: dict[str, str]


def chosen_server() -> tuple[Literal["ceph", "moto"], str]:
    """Which server the tests get, and a line that says so and why."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.environ.get("TLRAY_TEST_S3") == "moto":
        return "moto", "moto, as TLRAY_TEST_S3 asks for"
    return ("moto", f"moto, as there is no {', '.join(missing)}") if missing else ("ceph", "Ceph RADOS Gateway")


@contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """The server while the block runs; `folder` is for its files and has a short path (sockets lie in it)."""
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    kind, _ = chosen_server()
    with _running_moto() if kind == "moto" else _running_ceph(folder, access_key, secret_key) as endpoint:
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            # Ray and pyarrow read it; tlray asks for it itself
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        yield S3Server(kind, endpoint, environment)


@contextmanager
def _running_moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def _running_ceph(folder: Path, access_key: str, secret_key: str) -> Iterator[str]:
    monitor_port, port = _free_ports(2)
    config = folder / "ceph.conf"
    fsid = str(uuid.uuid4())
    config.write_text(CEPH_CONF.format(folder=folder, fsid=fsid, monitor_port=monitor_port, port=port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    (folder / "keyring").touch()

    monitors = ["--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", "--set-min-mon-release", "pacific"]
    _run(folder, "monmaptool", "--create", "--fsid", fsid, *monitors, str(folder / "monmap"))
    with contextlib.ExitStack() as daemons:
        _run(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "-c", str(config))
        daemons.enter_context(_daemon(folder, "ceph-mon", "-i", "a", "-c", str(config)))
        osd = str(uuid.uuid4())
        _run(folder, "ceph", "-c", str(config), "osd", "new", osd)
        _run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", str(config))
        daemons.enter_context(_daemon(folder, "ceph-osd", "-i", "0", "-c", str(config)))
        keys = [f"--access-key={access_key}", f"--secret-key={secret_key}"]
        gateway = ["-c", str(config), "-n", "client.rgw"]
        _run(folder, "radosgw-admin", *gateway, "user", "create", "--uid=test", "--display-name=test", *keys)
        daemon = daemons.enter_context(_daemon(folder, "radosgw", *gateway))
        _wait_for(port, daemon, folder)
        yield f"http://127.0.0.1:{port}"


def _run(folder: Path, *command: str) -> None:
    """One command of the start-up, its output in the log."""
    with (folder / "startup.log").open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=_environment(), timeout=STARTUP_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed; the last lines of {folder}/startup.log:\n{_tail(folder)}")


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground of a child process that ends with this process, even a killed one (on Linux)."""
    with (folder / "startup.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "-f"], stdout=log, stderr=log, env=_environment(), preexec_fn=_die_with_parent
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """Without the variables that point Ceph's programs at another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}


def _wait_for(port: int, daemon: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the gateway did not come up; the last lines of {folder}/startup.log:\n{_tail(folder)}")


def _tail(folder: Path) -> str:
    return "\n".join((folder / "startup.log").read_text(errors="replace").splitlines()[-20:])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
