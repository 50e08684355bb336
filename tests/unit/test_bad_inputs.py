"""Every bad input ends in its exit code and one line that names field, value and remedy, and touches nothing."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bad_input_case import CONFIG, Case, write_files
from tests.unit.bad_input_early import EARLY, IDS
from tests.unit.bad_input_late import LATE
from tlray.catalogue import all_models
from tlray.cli import main

LIBRARY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of caches as it is from the second command on: the catalogue's own facts are in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        all_models()
    return folder


@pytest.fixture
def root(tmp_path: Path, image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, beside one to be at home in."""
    for name in ("home", "matplotlib"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(image_folder, tmp_path / "work" / "photos")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(*folders: Path) -> dict[str, str]:
    """Every path below the folders with the hash of what it holds."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in folder.rglob("*")
    }


def check(case: Case, code: object, errors: str) -> None:
    lines = errors.splitlines()
    assert len(lines) == 1, errors[-3000:]
    assert lines[0].startswith("error: ")
    assert [word for word in case.words if word not in lines[0]] == [], lines[0]
    assert len(lines[0]) < 3000
    assert code == case.code


@pytest.mark.parametrize("case", [*EARLY, *IDS, *LATE], ids=lambda case: case.name)
def test_a_bad_input_is_one_line_and_nothing_is_touched(
    case: Case, root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(root, {"config.yaml": CONFIG, **case.files})
    places = [root, root.parent / "home", *([cache] if case in EARLY else ())]  # the plan keeps what it has measured
    before = contents(*places)
    with pytest.raises(SystemExit) as leaving:
        main(list(case.arguments))
    check(case, leaving.value.code, capsys.readouterr().err)
    assert contents(*places) == before


ALL_AT_ONCE = """
import contextlib, io, json, os, sys, tempfile
from pathlib import Path
from tests.unit.bad_input_case import CONFIG, write_files
from tests.unit.bad_input_early import EARLY
from tlray.cli import main

found = []
for case in EARLY:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as errors:
        os.chdir(folder)
        write_files(Path(folder), {"config.yaml": CONFIG, **case.files})
        (Path(folder) / "photos" / "blue").mkdir(parents=True)
        (Path(folder) / "photos" / "blue" / "00.jpg").write_bytes(bytes([255, 216, 255]))
        try:
            main(list(case.arguments))
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        os.chdir("/")
    heavy = [name for name in ("torch", "ray", "timm", "onnx") if name in sys.modules]
    found.append((case.arguments, code, errors.getvalue(), heavy))
print(json.dumps([[*map(ascii, one)] for one in found if one[1] != 2 or one[3]]))
"""


def test_what_needs_neither_ray_nor_torch_to_be_refused_imports_neither(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], capture_output=True, text=True, cwd=LIBRARY, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("arguments", ["run config.yaml nowhere=1", "resume nowhere", "predict ./nowhere photos"])
def test_a_process_of_its_own_ends_with_the_same_line(arguments: str, root: Path) -> None:
    write_files(root, {"config.yaml": CONFIG})
    done = subprocess.run(
        [sys.executable, "-m", "tlray.cli", *arguments.split()], capture_output=True, text=True, check=False
    )
    check(Case((), ("nowhere",)), done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("sweep", "", ("--config", "--resume", "--help")),
        ("sweep", "--resume nowhere seed=1", ("seed=1", "--config")),
        ("predict", "--model nowhere", ("--images", "--help")),
        ("train_local", "--config config.yaml seed=032", ("seed", "'032'", "leading zero")),
    ],
)
def test_a_job_ends_with_one_line_too(script: str, arguments: str, words: tuple[str, ...], root: Path) -> None:
    write_files(root, {"config.yaml": CONFIG})
    program = [sys.executable, str(LIBRARY / "jobs" / f"{script}.py"), *arguments.split()]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    check(Case((), words), done.returncode, done.stderr)


def test_a_missing_bucket_is_named(root: Path, s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(root, {"config.yaml": CONFIG})
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "config.yaml", "data.train=s3://no-such-bucket/images"])
    check(Case((), ("no-such-bucket",)), leaving.value.code, capsys.readouterr().err)


def test_wrong_credentials_are_refused_and_not_shown(
    root: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if s3.kind == "moto":
        pytest.skip("moto accepts any credentials")
    from tlray.storage.s3 import forget_clients

    write_files(root, {"config.yaml": CONFIG})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-key")
    forget_clients()
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "config.yaml", f"data.train={s3.uri}/images"])
    errors = capsys.readouterr().err
    check(Case((), ("credentials",)), leaving.value.code, errors)
    assert "a-wrong-secret-key" not in errors
    forget_clients()
