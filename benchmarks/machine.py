"""Where a benchmark ran: machine, versions, command."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """Two lines to print above a benchmark's table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    cpu = next(iter(names), platform.machine())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "ray"))
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return f"{command}\n{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def shared_folder() -> Path:
    """Where the images and weights of the benchmarks lie: $TLRAY_SHARED, by default ../shared."""
    folder = Path(os.environ.get("TLRAY_SHARED", "../shared")).absolute()
    if not (folder / "weights").is_dir():
        sys.exit(f"there are no weights in {folder}: set TLRAY_SHARED to the folder with data/ and weights/")
    return folder
