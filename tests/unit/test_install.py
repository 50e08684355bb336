"""The set-up script refuses what cannot work with one line, before it makes anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """A `python` that says it is 3.10."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.13"\n[ "$1" = --version ]\n')
    path.chmod(0o755)
    return path


def install(python: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run([ROOT / "scripts/install"], env=environment, capture_output=True, text=True, check=False)


def test_a_python_older_than_required_is_refused_in_one_line(fake_python: Path) -> None:
    done = install(str(fake_python))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tlray needs Python 3.11 or newer, but {fake_python} is Python 3.10.13: ")
    assert done.stderr.count("\n") == 1


def test_a_python_that_does_not_exist_is_refused_in_one_line() -> None:
    done = install("no-such-python")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tlray needs Python 3.11 or newer, and there is no no-such-python here: install it and try again\n"
    )
