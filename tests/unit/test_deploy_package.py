"""What `ray job submit --working-dir .` sends to a cluster from a clean checkout, by Ray's own packaging code."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a clone would have, in a folder of their own."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this is no git checkout: {error}")
    folder = tmp_path_factory.mktemp("checkout")
    for name in done.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # what a developer has lying about
    for name in (".git/objects/pack", ".venv/lib/torch.so", "tlray/__pycache__/run.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0" * 1000)
    return folder


@pytest.fixture(scope="module")
def package(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(checkout), target, include_gitignore=True)
    return target


def names_in(package: Path) -> set[str]:
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_package_of_a_job_is_smaller_than_three_megabytes(package: Path) -> None:
    assert package.stat().st_size < 3 * 2**20  # Ray does not compress it; the catalogue's facts are 600 KB of it


def test_the_package_holds_all_that_a_job_imports_and_reads(package: Path, checkout: Path) -> None:
    needed = {
        str(path.relative_to(checkout))
        for folder in ("tlray", "jobs", "configs")
        for path in (checkout / folder).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert needed <= names_in(package)


def test_the_package_holds_nothing_else_but_what_names_the_project(package: Path) -> None:
    others = {name for name in names_in(package) if name.partition("/")[0] not in ("tlray", "jobs", "configs")}
    assert others == {"pyproject.toml"}
