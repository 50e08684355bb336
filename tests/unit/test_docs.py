"""The documents say what is true: commands, targets, files and paths that they name exist, and nothing private."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from tlray.cli.commands import app

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
GUIDES = ["README.md", "CONTRIBUTING.md"]

# Put together from parts, so that this file does not contain what it looks for. `somebody` is nobody's folder.
FOLDERS = "|".join(("ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk"))
REGISTRIES = "|".join(("py" + r"pi\.org", "python" + "hosted", "registry" + r"\.npm", "deb" + r"\.debian"))
PRIVATE = [re.compile(rf"(?<![\w.~{{}}*$/-])/(?:{FOLDERS})/(?!somebody\b)\w"), re.compile(REGISTRIES)]


def commands() -> dict[str, str]:
    """The help text of every command of the program."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return {name: command.help or "" for name, command in root.commands.items()}


def code_in(guide: str) -> str:
    """Everything between backticks and in code blocks, a line each."""
    text = (ROOT / guide).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join(blocks + spans)


def files_in_git() -> list[Path]:
    """Files that are tracked or would be with the next `git add`; skips the test outside a checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this is no git checkout: {error}")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_page_of_the_command_line_is_what_the_commands_say_of_themselves() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/cli_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_command_is_documented_and_has_help() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for name, text in commands().items():
        assert text, f"tlray {name} has no docstring"
        assert f"## tlray {name}\n" in page


def test_every_command_line_in_the_guides_names_a_command_that_exists() -> None:
    for guide in GUIDES:
        used = set(re.findall(r"^tlray +([a-z]+)", code_in(guide), flags=re.MULTILINE))
        assert used <= set(commands()), f"{guide} names {used - set(commands())}"


def test_every_make_target_in_the_guides_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    for guide in GUIDES:
        used = set(re.findall(r"^make ([a-z-]+)", code_in(guide), flags=re.MULTILINE))
        assert used <= targets, f"{guide} names {used - targets}"


def test_the_readme_starts_with_make_demo_and_names_make_test() -> None:
    first_commands = re.findall(r"^make [a-z-]+", README, flags=re.MULTILINE)
    assert first_commands[0] == "make demo"
    assert "make test" in first_commands


def test_every_file_that_the_guides_link_or_name_exists() -> None:
    for guide in GUIDES:
        text = (ROOT / guide).read_text()
        named = re.findall(r"\]\(([^)#:]+)\)", text)
        named += re.findall(r"\b((?:configs|jobs|scripts|docs)/[\w./-]+\w)", text)
        missing = [name for name in named if not (ROOT / name).exists()]
        assert not missing, f"{guide} names {missing}"


def test_no_file_names_somebodys_folder_or_a_package_registry() -> None:
    found = []
    for path in files_in_git():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {line}" for rule in PRIVATE if rule.search(line)]
    assert not found


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+]+( ; .+)?", line) for line in pins)
    assert not any(word in line for line in lines for word in ("://", " --", "file:"))


def test_torch_and_torchvision_are_pinned_as_a_pair() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert "\ntorch==2.15.0\n" in constraints
    assert "\ntorchvision==0.29.2\n" in constraints
