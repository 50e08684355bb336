"""Every command in docs/aws.md and docs/kubernetes.md: `ray`, `tlray`, the jobs and `aws` by their own parsers.

kubectl, helm, eksctl and docker have none here: of their commands only the files that they name are looked at.
"""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

import tlray.cli.commands
import tlray.cli.job
import tlray.process.ending

ROOT = Path(__file__).parent.parent.parent
GUIDES = ["docs/aws.md", "docs/kubernetes.md"]
CHECKED = ("ray", "tlray", "python", "aws", "make")
UNCHECKED = {"kubectl", "helm", "eksctl", "docker"}
SHELL = {"export", "source", "for", "done", "mkdir", "sed", "base64"}
# Of every command of the AWS CLI, and commands that are the CLI's own instead of a service's.
AWS_GLOBAL = {"query", "output", "region", "max-items"}
AWS_OWN = {"s3": {"mb", "rb", "sync", "cp"}, "ecr": {"get-login-password"}, "configure": {""}}


def shell_lines(guide: str) -> Iterator[str]:
    """Every command line of a guide, in code blocks and between backticks, continued lines joined."""
    text = (ROOT / guide).read_text()
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        if span.split()[0] in {*CHECKED, *UNCHECKED} and " " in span:
            yield span.replace("\n", " ")


def commands(guide: str) -> Iterator[list[str]]:
    """The words of every command, also of those in $(...) and behind a pipe."""
    for line in shell_lines(guide):
        inner = re.findall(r"\$\(([^()]*)\)", line)
        outer = re.sub(r"\$\([^()]*\)", "VALUE", line)
        for part in (outer, *inner):
            words: list[str] = []
            for word in [*shlex.split(part, comments=True), "|"]:
                if word != "|":
                    words.append(word)
                elif words:
                    yield words
                    words = []


def commands_of(program: str) -> list[Any]:
    found = [(guide, words) for guide in GUIDES for words in commands(guide) if words[0] == program]
    assert found, f"no guide calls {program}"
    return [pytest.param(words, id=f"{Path(guide).stem}: {' '.join(words)[:60]}") for guide, words in found]


def parse(command: click.Command, words: list[str], name: str) -> dict[str, Any]:
    """What a click program understands of a command line, without doing it; click's own exception where it is wrong.

    A name without anything behind it, as sentences use it (`ray up`), need only be that of a command; so does --help.
    """
    if isinstance(command, click.Group):
        if not words:
            return {}
        found, inner, rest = command.resolve_command(click.Context(command, info_name=name), words)
        assert inner is not None
        return parse(inner, rest, found or "")
    return command.make_context(name, words).params if words not in ([], ["--help"]) else {}


def check_tlray(words: list[str]) -> None:
    root = typer.main.get_command(tlray.cli.commands.app)
    name, command, rest = root.resolve_command(root.make_context("tlray", list(words)), words)
    parse(command, rest, name)


@pytest.mark.parametrize("words", commands_of("tlray"))
def test_tlray_understands(words: list[str]) -> None:
    check_tlray(words[1:])


@pytest.mark.parametrize("words", commands_of("ray"))
def test_ray_understands(words: list[str]) -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import cli

    understood = parse(cli, words[1:], "ray")
    if words[1:3] == ["job", "submit"] and words[3:]:
        assert understood["entrypoint_num_cpus"] == 0
        if understood["entrypoint"] != ("nvidia-smi",):
            assert understood["working_dir"] == "."
            check_job(list(understood["entrypoint"]))
    if understood.get("cluster_config_file"):
        assert (ROOT / understood["cluster_config_file"]).is_file()
    if (understood.get("cmd") or "").startswith("ray "):
        parse(cli, understood["cmd"].split()[1:], "ray")


@pytest.mark.parametrize("words", commands_of("python"))
def test_a_job_understands(words: list[str]) -> None:
    check_job(words)


def check_job(words: list[str]) -> None:
    """The job's own parser takes the words, up to a `||`, and tlray understands what the job makes of them."""
    words = words[: words.index("||")] if "||" in words else words
    script = words[1].removeprefix("/app/")
    assert (ROOT / script).is_file(), f"there is no {script}"
    said: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words[2:]])
        patch.setattr(tlray.cli, "main", said.append)  # imported by the script itself
        patch.setattr(tlray.cli.job, "main", said.append)
        for module in (tlray.process.ending, tlray.cli.job):
            patch.setattr(module, "own_process", lambda work: work())  # it would end this process too
        runpy.run_path(str(ROOT / script), run_name="__main__")
    check_tlray(said[0])


@pytest.mark.parametrize("words", commands_of("aws"))
def test_the_aws_cli_knows(words: list[str]) -> None:
    import botocore.session
    from botocore import xform_name

    service, operation = words[1], (words[2:] or [""])[0]
    if operation in AWS_OWN.get(service, ()):
        return
    model = botocore.session.get_session().get_service_model(service)
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    assert operation in operations, f"{service} has no {operation}"
    shape = model.operation_model(operations[operation]).input_shape
    members = {} if shape is None else {xform_name(name, "-"): name for name in shape.members}
    used = {word[2:] for word in words[3:] if word.startswith("--")}
    assert used <= set(members) | AWS_GLOBAL
    required = set() if shape is None else {xform_name(name, "-") for name in shape.required_members}
    assert required <= used


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_is_one_that_is_known_here(guide: str) -> None:
    programs = {words[0] for words in commands(guide)}
    assert programs <= {*CHECKED, *UNCHECKED, *SHELL}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_make_target_exists(guide: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {words[1] for words in commands(guide) if words[0] == "make"} <= targets


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_that_a_guide_names_exists(guide: str) -> None:
    text = (ROOT / guide).read_text()
    named = set(re.findall(r"(?<![\w./])(?:configs|deploy|docs|jobs|tests|scripts)/[\w./-]*\w", text))
    linked = {f"docs/{link}" for link in re.findall(r"\]\(([a-z][\w./-]*\.md)(?:#[\w-]*)?\)", text)}
    missing = [name for name in named | linked if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("guide", GUIDES)
def test_every_chapter_that_a_guide_links_to_exists(guide: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", (ROOT / guide).read_text()):
        text = (ROOT / "docs" / target if target else ROOT / guide).read_text()
        headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert anchor in anchors


@pytest.mark.parametrize("manifest", ["sweep-job.yaml", "retrain-job.yaml"])
def test_the_entry_point_of_a_manifest_is_a_job_that_understands_it(manifest: str) -> None:
    entry_point = yaml.safe_load((ROOT / "deploy" / "kubernetes" / manifest).read_text())["spec"]["entrypoint"]
    check_job(shlex.split(entry_point))


def test_a_retraining_with_nothing_to_do_is_a_success_of_its_ray_job() -> None:
    """As the guide submits it: Ray joins the words, and a shell reads the result."""
    pytest.importorskip("ray")
    from ray.dashboard.modules.job.cli import list2cmdline

    submitted = [words for words in commands("docs/aws.md") if "||" in words]
    assert len(submitted) == 1
    entry_point = submitted[0][submitted[0].index("--") + 1 :]
    for code, outcome in ((0, 0), (3, 0), (1, 1)):
        stand_in = ["sh", "-c", f"exit {code}", *entry_point[entry_point.index("||") :]]
        assert subprocess.run(list2cmdline(stand_in), shell=True, check=False).returncode == outcome
