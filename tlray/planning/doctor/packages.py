"""Python, the packages that tlray requires, and whether torch and torchvision were built for each other."""

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tlray
from tlray.planning.doctor.check import Check, gib

# Runs in a process of its own: a broken torch must not take the doctor down, and a look at the GPUs leaves a CUDA
# context behind. torch's facts are printed before torchvision is imported, so that they survive its failure.
PROBE = """
import json, warnings
warnings.simplefilter("ignore")
import torch
names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "gpus": [[gpu.name, gpu.total_memory] for gpu in names] if torch.cuda.is_available() else [],
}), flush=True)
import torchvision
from torchvision.ops import nms
print(json.dumps(torchvision.__version__), flush=True)
"""
PROBE_TIMEOUT_SECONDS = 180  # a first import of torch from a cold network disk takes a minute or more


@dataclass(frozen=True)
class TorchFacts:
    """What torch says of itself and this machine; `gpus` are (name, bytes of memory)."""

    torch: str
    cuda: str | None  # the CUDA version it was built for; None for a CPU build
    gpus: tuple[tuple[str, int], ...]
    torchvision: str


@dataclass(frozen=True)
class Needs:
    """What tlray requires of its surroundings."""

    python: SpecifierSet
    packages: tuple[Requirement, ...]


def read_needs() -> Needs:
    """From pyproject.toml in a checkout (a Ray job runs in one, not installed), else from the installed package.

    Without either nothing is known of them: no package, and any Python.
    """
    project_file = Path(tlray.__file__).parent.parent / "pyproject.toml"
    if project_file.is_file():
        project = tomllib.loads(project_file.read_text())["project"]
        return Needs(
            python=SpecifierSet(project["requires-python"]),
            packages=tuple(Requirement(line) for line in project["dependencies"]),
        )
    try:
        declared = metadata.metadata("tlray")
    except metadata.PackageNotFoundError:  # the folder tlray alone, copied to where it runs
        return Needs(python=SpecifierSet(), packages=())
    packages = (Requirement(line) for line in declared.get_all("Requires-Dist") or [])
    return Needs(
        python=SpecifierSet(declared["Requires-Python"]),
        packages=tuple(package for package in packages if "extra" not in str(package.marker)),
    )


def check_python(needs: Needs, version: str | None = None) -> Check:
    version = version or ".".join(map(str, sys.version_info[:3]))
    if needs.python.contains(version):
        return Check("Python", "ok", f"{version} at {sys.executable}")
    remedy = f"make the environment again with Python {needs.python}"
    return Check("Python", "problem", f"{version}, and tlray needs {needs.python}", remedy)


def check_packages(needs: Needs) -> Check:
    """Every requirement against what is installed."""
    if not needs.packages:
        detail = "not compared: tlray is not installed, and no pyproject.toml lies beside its folder"
        return Check("packages", "warning", detail, "install tlray, or run it in a whole checkout")
    wrong: list[str] = []
    right: list[str] = []
    for package in needs.packages:
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{package.name} is missing, tlray needs {package.specifier}")
            continue
        if package.specifier.contains(version, prereleases=True):
            right.append(f"{package.name} {version}")
        else:
            wrong.append(f"{package.name} {version}, tlray needs {package.specifier}")
    if wrong:
        remedy = "install tlray with its constraints: pip install --constraint constraints.txt --editable ."
        return Check("packages", "problem", "; ".join(wrong), remedy)
    shown = [line for line in right if line.split()[0] in ("torch", "torchvision", "ray", "timm")]
    return Check("packages", "ok", f"{len(right)} as required, among them {', '.join(shown)}")


def check_torch(needs: Needs) -> tuple[Check, TorchFacts | None]:
    """Whether torch and torchvision import together; the facts are None where they do not."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        detail = f"importing them did not end within {PROBE_TIMEOUT_SECONDS} s"
        return Check("torch and torchvision", "problem", detail, "look at the disk that Python is installed on"), None
    printed = [json.loads(line) for line in probe.stdout.splitlines()]
    if probe.returncode != 0:
        return _import_failure(probe.stderr, printed[0] if printed else None, needs), None
    facts = TorchFacts(
        torch=printed[0]["torch"],
        cuda=printed[0]["cuda"],
        gpus=tuple((name, memory) for name, memory in printed[0]["gpus"]),
        torchvision=printed[1],
    )
    build = f"CUDA {facts.cuda}" if facts.cuda else "CPU only"
    detail = f"torch {facts.torch} ({build}) and torchvision {facts.torchvision} work together"
    return Check("torch and torchvision", "ok", detail), facts


def _import_failure(stderr: str, torch_facts: dict[str, str | None] | None, needs: Needs) -> Check:
    """The problem in one line, and how to mend it."""
    name = "torch and torchvision"
    last_line = (stderr.strip().splitlines() or ["no message"])[-1]
    pair = " ".join(f'"{package}"' for package in needs.packages if package.name in ("torch", "torchvision"))
    remedy = f"install both from one place, at versions made for each other: pip install --force-reinstall {pair}"
    if torch_facts is None:
        return Check(name, "problem", f"torch cannot be imported: {last_line}", remedy)
    build = "a CPU-only build" if torch_facts["cuda"] is None else f"built for CUDA {torch_facts['cuda']}"
    torch_is = f"torch {torch_facts['torch']} ({build})"
    if "operator torchvision::nms does not exist" in stderr or "libcudart" in stderr or "undefined symbol" in stderr:
        detail = f"torchvision was not built for the installed {torch_is}: {last_line}"
        return Check(name, "problem", detail, remedy)
    return Check(name, "problem", f"torchvision cannot be imported beside {torch_is}: {last_line}", remedy)


def describe_gpus(facts: TorchFacts) -> str:
    return ", ".join(f"{name} ({gib(memory)})" for name, memory in facts.gpus) or "none"
