"""deploy/aws/setup_node.sh: what it makes of a node; programs that would change this machine are stand-ins."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A home folder as `ray up` leaves it: the setup files, and a `uv` that only notes what it is told."""
    setup = tmp_path / "tlray-setup"
    setup.mkdir()
    for local in yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"].values():
        (setup / Path(local).name).write_bytes((ROOT / local).read_bytes())
    version = re.search(r"^uv=(\S+)$", (setup / "setup_node.sh").read_text(), flags=re.MULTILINE)
    assert version is not None
    uv = tmp_path / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "uv {version[1]}" && exit\n'
        'echo "$@" >> "$HOME/uv.log"\n[ "$1" = venv ] && mkdir -p "$HOME/tlray-env"\nexit 0\n'
    )
    uv.chmod(0o755)
    (tmp_path / "bin").mkdir()
    program(tmp_path, "sudo", 'exec "$@"')
    program(tmp_path, "systemctl", "exit 1")
    program(tmp_path, "mountpoint", "exit 1")
    (tmp_path / ".bashrc").write_text("")
    return tmp_path


def run_setup(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = ["bash", str(home / "tlray-setup" / "setup_node.sh")]
    environment |= {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


def set_up(home: Path, disk: Path) -> str:
    done = run_setup(home, TLRAY_LOCAL_DISK=str(disk))
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(home: Path, name: str, script: str) -> None:
    (home / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin" / name).chmod(0o755)


def test_a_node_keeps_its_caches_and_spilled_objects_on_the_local_disk(node: Path, tmp_path: Path) -> None:
    (node / ".cache" / "torch").mkdir(parents=True)
    (node / ".cache" / "torch" / "weights.pth").write_text("kept")
    disk = tmp_path / "nvme"
    set_up(node, disk)
    assert (node / ".cache").resolve() == disk / "tlray-cache"
    assert (node / ".cache" / "torch" / "weights.pth").read_text() == "kept"
    assert (disk / "tlray-cache" / "ray-spill").is_dir()


def test_a_node_that_is_set_up_twice_installs_once_and_again_when_the_versions_changed(
    node: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert set_up(node, tmp_path / "nvme").startswith("ready: ")
    log = node / "uv.log"
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["venv", "pip"]
    assert "constraints.txt" in log.read_text()
    assert (node / ".bashrc").read_text().count("tlray-env") == 1
    with (node / "tlray-setup" / "constraints.txt").open("a") as constraints:
        constraints.write("made-up-package==1.0\n")
    set_up(node, tmp_path / "nvme")
    assert len(log.read_text().splitlines()) == 4


def test_a_node_without_a_disk_of_its_own_keeps_its_caches_at_home_even_from_an_image_of_one_that_had_one(
    node: Path,
) -> None:
    program(node, "lsblk", "echo /dev/nvme0n1 Amazon Elastic Block Store")
    (node / ".cache").symlink_to(node / "gone")
    done = run_setup(node)
    assert done.returncode == 0, done.stderr
    assert (node / ".cache" / "ray-spill").is_dir()
    assert not (node / ".cache").is_symlink()


def test_an_instance_store_that_nobody_mounted_is_formatted_and_mounted_and_no_other_disk_is(node: Path) -> None:
    disks = "/dev/nvme0n1 Amazon Elastic Block Store\\n/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\\n"
    program(node, "lsblk", f"printf '{disks}'")
    program(node, "sudo", 'echo "$@" >> "$HOME/sudo.log"')
    run_setup(node)  # does not get far: nothing was really mounted
    said = (node / "sudo.log").read_text().splitlines()
    assert said[:3] == [
        "mkfs.ext4 -q -F -E nodiscard /dev/nvme1n1",
        "mkdir -p /mnt/nvme",
        "mount -o noatime /dev/nvme1n1 /mnt/nvme",
    ]
    assert not any("nvme0n1" in line for line in said)


def test_an_instance_store_that_the_image_mounts_is_used_as_it_is(node: Path) -> None:
    program(node, "lsblk", "echo /dev/nvme1n1 Amazon EC2 NVMe Instance Storage")
    program(node, "systemctl", '[ "$1" = cat ]')
    program(node, "mountpoint", '[ "$2" = /opt/dlami/nvme ]')
    program(node, "sudo", 'echo "$@" >> "$HOME/sudo.log"')
    run_setup(node)
    assert (node / "sudo.log").read_text().splitlines()[0] == "mkdir -p /opt/dlami/nvme/tlray-cache"


def test_a_disk_that_cannot_be_mounted_ends_the_set_up(node: Path) -> None:
    program(node, "lsblk", "echo /dev/nvme1n1 Amazon EC2 NVMe Instance Storage")
    program(node, "sudo", '[ "$1" = mkdir ]')
    assert run_setup(node).returncode != 0
    assert not (node / "uv.log").exists()


UV = '#!/bin/sh\necho "$@" >> "$HOME/uv.log"\n[ "$1" = venv ] && mkdir -p "$HOME/tlray-env"\nexit 0\n'


def as_new(node: Path, *, expected: str | None = None) -> dict[str, str]:
    """A node without uv, whose packages are one wheel that a `uv` lies in -> its environment.

    `expected`: the checksum that the script knows; by default the wheel's.
    """
    setup = node / "tlray-setup" / "setup_node.sh"
    version = re.search(r"^uv=(\S+)$", setup.read_text(), flags=re.MULTILINE)
    assert version is not None
    name = f"uv-{version[1]}"
    wheel = node / "packages" / f"{name}-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.data/scripts/uv", UV)
        archive.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: uv\nVersion: {version[1]}\n")
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    (node / ".local" / "bin" / "uv").unlink()
    program(node, "python3", f'exec {sys.executable} "$@"')
    line = f"uv_sha256={expected or hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    text, count = re.subn(r"^uv_sha256=[0-9a-f]{64}$", line, setup.read_text(), flags=re.MULTILINE)
    assert count == 1
    setup.write_text(text)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": "/dev/null"}


def test_uv_is_installed_at_its_version_where_its_checksum_is_the_one_that_is_known(node: Path, tmp_path: Path) -> None:
    done = run_setup(node, TLRAY_LOCAL_DISK=str(tmp_path / "nvme"), **as_new(node))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in (node / "uv.log").read_text().splitlines()] == ["venv", "pip"]


def test_a_download_that_is_another_file_is_not_installed_and_ends_the_set_up(node: Path, tmp_path: Path) -> None:
    done = run_setup(node, TLRAY_LOCAL_DISK=str(tmp_path / "nvme"), **as_new(node, expected="0" * 64))
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (node / ".local" / "bin" / "uv").exists()
    assert not (node / "uv.log").exists()


def test_nothing_downloaded_is_piped_into_a_shell() -> None:
    for path in [
        *(ROOT / "deploy").rglob("*"),
        ROOT / "cluster.yaml",
        *(ROOT / "scripts").glob("*"),
        ROOT / ".ci" / "run",
    ]:
        if path.is_file():
            assert not re.search(r"(curl|wget)[^\n|]*\|\s*(sudo\s+|env\s+\S+\s+)*(ba|z)?sh\b", path.read_text()), path
