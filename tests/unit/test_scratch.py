"""Temporary folders: full, missing and unwritable ones are one line, those of killed processes are swept.

Run: python -m pytest tests/unit/test_scratch.py
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_bundle import BACKBONE, CLASSES, COUNTS, METRICS, small_bundle

from tlray.cli import main
from tlray.data.manifest import Manifest
from tlray.errors import StorageError, TlrayError
from tlray.export import export_bundle
from tlray.process.scratch import sweep, temporary_folder
from tlray.runs.manifest import save_manifest


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_a_folder_is_empty_ours_alone_and_gone_afterwards(base: Path) -> None:
    with temporary_folder("export") as folder:
        assert list(folder.iterdir()) == []
        assert folder.parent.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("x")
    assert list(base.iterdir()) == []


HOLDER = """
import time
from tlray.process.scratch import temporary_folder
with temporary_folder("tune") as folder:
    (folder / "large").write_bytes(bytes(1000))
    print(folder.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_next_command_removes_the_folders_of_killed_processes_and_no_others(
    base: Path, holder: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    assert holder.stdout is not None
    theirs = Path(holder.stdout.readline().strip())
    (base / "tlray-notes").mkdir()
    (base / "tlray-notes" / "mine").write_text("x")
    (base / "tlray-link").symlink_to(base / "tlray-notes")
    with temporary_folder("export") as ours:
        sweep()
        assert (theirs / "tune" / "large").exists()
        assert ours.exists()
        holder.kill()
        holder.wait()
        with pytest.raises(SystemExit):
            main(["models", "no-such-model"])
        assert not theirs.exists()
        assert ours.exists()
    assert sorted(path.name for path in base.iterdir()) == ["tlray-link", "tlray-notes"]


def test_a_missing_or_unsuitable_tmpdir_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nope"))
    with pytest.raises(StorageError, match=r"TMPDIR .*/nope is not a folder: make it"), temporary_folder("x"):
        pass
    sweep()  # is nobody's business
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(StorageError, match=r"TMPDIR .* cannot be written to"), temporary_folder("x"):
        pass


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_with_a_name(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / "file"))


def full_by_a_librarys_words(path: Path) -> None:
    raise RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")


def full_and_blamed_on_the_model(path: Path) -> None:
    try:
        full(path)
    except OSError as error:
        raise TlrayError("resnet cannot be exported to model.pt2") from error


@pytest.mark.parametrize("fails", [full, full_with_a_name, full_by_a_librarys_words, full_and_blamed_on_the_model])
def test_a_full_folder_is_blamed_and_nothing_else(base: Path, fails: Callable[[Path], None]) -> None:
    said = f"{base}, for temporary files: No space left on device; make room there, or set TMPDIR"
    with pytest.raises(StorageError, match=said), temporary_folder("export") as folder:
        fails(folder)
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("broken"),
        StorageError("s3://bucket/x: No space left on device"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/another/place"),
        OSError(errno.EACCES, os.strerror(errno.EACCES)),
    ],
)
def test_what_is_not_the_folders_fault_is_left_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, temporary_folder("export"):
        raise error
    assert raised.value is error


def write_into_what_was_removed(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    (folder / "file").write_text("x")


def test_a_folder_that_was_removed_meanwhile_is_named(base: Path) -> None:
    with pytest.raises(StorageError, match="it was removed while it was in use"), temporary_folder("export") as folder:
        write_into_what_was_removed(folder)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """`ulimit -f`, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_export_that_finds_no_room_is_not_the_models_fault(base: Path, image_folder: Path, tmp_path: Path) -> None:
    small = small_bundle(image_folder)
    with pytest.raises(StorageError, match=f"{base}, for temporary files: ") as raised, files_of_at_most(100_000):
        export_bundle(
            model=small.model,
            backbone=BACKBONE,
            classes=CLASSES,
            preprocessing=small.preprocessing,
            strategy="full",
            params={},
            metrics=METRICS,
            data_summary=COUNTS,
            samples=torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
            destination=str(tmp_path / "exports" / "1-model"),
        )
    assert "cannot be exported" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert list(base.glob("tlray-*")) == []
    assert not (tmp_path / "exports").exists()


@pytest.fixture
def small_disk(base: Path) -> Iterator[Path]:
    """TMPDIR as a file system of 64 KiB, where that may be mounted."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", base], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield base
    subprocess.run(["umount", base], check=True)


def test_a_full_disk_under_a_manifest_is_one_line(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(61_000))
    with pytest.raises(StorageError, match=f"{small_disk}, for temporary files: No space left on device"):
        save_manifest(Manifest(tuple(f"class {number}" * 20 for number in range(1000)), (), ()), str(tmp_path / "run"))
