"""Standard output that is closed, full or read by nobody ends a command as Unix tools end: without a traceback."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tlray.cli import main
from tlray.errors import TlrayError
from tlray.process.standard_output import NOBODY_READS, standard_output

ROOT = Path(__file__).parent.parent.parent


def tlray(command: str) -> subprocess.CompletedProcess[str]:
    """What a shell sees of `tlray`, with $TLRAY for it."""
    environment = {**os.environ, "TLRAY": f"{sys.executable} -m tlray.cli", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )


@pytest.mark.parametrize("arguments", ["models --json", "--help"])
def test_head_ends_a_command_quietly_as_it_ends_any_tool(arguments: str) -> None:
    # the reader is gone before anything is written
    done = tlray(f"( $TLRAY {arguments}; echo $? >&2 ) | true")
    assert done.stderr.strip() == str(NOBODY_READS) == str(128 + signal.SIGPIPE)


def test_a_full_disk_is_one_line_and_a_failure() -> None:
    done = tlray("$TLRAY models --json > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_closed_standard_output_is_nowhere() -> None:
    done = tlray("$TLRAY models timm/resnet18 <&- >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_keeps_its_exit_code_where_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    assert tlray("$TLRAY models --sort nonsense 2>/dev/full >&-; exit $?").returncode == 2


def test_names_that_the_terminal_cannot_show_are_written_with_backslashes() -> None:
    program = """
from tlray.process.standard_output import standard_output
with standard_output(): print('caf\\u00e9 \\udcff')
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"caf\\xe9 \\udcff\n"


def test_a_failure_in_a_thread_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Full())

    def work() -> None:
        with standard_output(), contextlib.suppress(TlrayError):  # as a thread's own end would have it
            print("x")

    with pytest.raises(TlrayError, match="standard output cannot be written: No space left"):
        work()


def test_a_command_in_this_process_leaves_its_output_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with pytest.raises(SystemExit):
        main(["models", "timm/resnet18", "--json"])
    assert sys.stdout is before
    assert capsys.readouterr().out.startswith("[{")
