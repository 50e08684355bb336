"""`tlray promote` and `tlray retrain` as a person calls them, and champion.json where a model is asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import write_board
from small_bundle import METRICS, small_bundle

from tlray import storage
from tlray.cli import main
from tlray.config import RunConfig
from tlray.config.file import dump_config
from tlray.config.search_space import list_trials
from tlray.data.manifest import Manifest, make_manifest
from tlray.errors import NothingToDo
from tlray.inference.predict import open_model
from tlray.runs.champion import load_champion
from tlray.runs.folder import write_format
from tlray.runs.manifest import save_manifest
from tlray.storage.sealed import write_checked, write_document

Promote = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Promote:
    """Runs `tlray ...` -> (exit code, what it printed, its errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), " ".join(printed.out.split()), printed.err

    return run


@pytest.fixture
def make_run(image_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A finished run with one export, below the folder `birds`."""

    def make(run_id: str) -> Path:
        run = tmp_path / "runs" / "birds" / run_id
        config = config_of(tmp_path)
        checksums = {"config.yaml": write_checked(str(run / "config.yaml"), dump_config(config).encode())}
        trial = list_trials(config)[1]
        document = trial.model_copy(update={"trial_id": METRICS["trial_id"]}).model_dump(mode="json")
        write_document(str(run / "trials" / METRICS["trial_id"] / "trial.json"), document)
        write_format(str(run), checksums | save_manifest(manifest(image_folder), str(run)))
        shutil.copytree(small_bundle(image_folder).folder, run / "exports" / "1-test_resnet")
        write_board(str(run))
        return run

    return make


def config_of(folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "birds",
            "storage": str(folder / "runs"),
            "data": {"train": str(folder)},
            "backbones": ["timm/test_resnet"],
            "strategies": ["full"],
            "training": {"lr": 0.25},
        }
    )


def manifest(image_folder: Path) -> Manifest:
    return make_manifest(RunConfig.model_validate(
        {"name": "x", "data": {"train": str(image_folder), "val_fraction": 0.25}, "backbones": ["timm/a"]}
    ).data)  # fmt: skip


def test_a_run_is_promoted_with_what_it_knows_of_its_best_export(
    command: Promote, make_run: Callable[[str], Path], image_folder: Path
) -> None:
    run = make_run("1")
    code, printed, _ = command("promote", run)
    assert code == 0
    assert "promoted by hand" in printed
    champion = load_champion(str(run.parent))
    assert (champion.number, champion.run, champion.by) == (1, str(run), "hand")
    assert champion.export == str(run / "exports" / "1-test_resnet")
    assert champion.metrics["test_accuracy"] == METRICS["test_accuracy"]
    assert champion.fingerprint == manifest(image_folder).fingerprint
    assert champion.start is not None
    assert champion.start.training.lr == 0.25


def test_the_model_of_a_champion_file_is_the_champions(
    command: Promote, make_run: Callable[[str], Path], image_folder: Path
) -> None:
    run = make_run("1")
    command("promote", run)
    images = [str(path) for path in sorted(image_folder.glob("*/00.jpg"))]
    model, direct = (open_model(str(uri)) for uri in (run.parent / "champion.json", run / "exports" / "1-test_resnet"))
    assert [one.probabilities for one in model(images)] == [one.probabilities for one in direct(images)]
    with pytest.raises(storage.NotFoundError, match="tlray promote RUN"):
        open_model(str(run.parent.parent / "eagles" / "champion.json"))


def test_history_and_rollback_are_asked_for_by_configuration_folder_or_run(
    command: Promote, make_run: Callable[[str], Path], tmp_path: Path
) -> None:
    first, second = make_run("1"), make_run("2")
    command("promote", first)
    command("promote", second)
    (tmp_path / "birds.yaml").write_text(dump_config(config_of(tmp_path)))
    code, printed, _ = command("promote", "--rollback", tmp_path / "birds.yaml")
    assert (code, "champion 1 brought back in the place of 2" in printed) == (0, True)
    for target in (first.parent, first, first / "exports" / "1-test_resnet", first.parent / "champion.json"):
        code, printed, _ = command("promote", "--history", target, "--json")
        champions = json.loads(printed)
        assert code == 0
        assert [(one["number"], one["restored"], one["run"]) for one in champions] == [
            (1, None, str(first)),
            (2, None, str(second)),
            (3, 1, str(first)),
        ]


def test_a_bundle_of_no_run_needs_to_be_told_whose_champion_it_becomes(
    command: Promote, make_run: Callable[[str], Path], tmp_path: Path
) -> None:
    run = make_run("1")
    command("promote", run)
    shutil.copytree(run / "exports" / "1-test_resnet", tmp_path / "bundle")
    code, _, error = command("promote", tmp_path / "bundle")
    assert code == 2
    assert "say with --into CONFIG" in error
    assert command("promote", tmp_path / "bundle", "--into", run.parent)[0] == 0
    champion = load_champion(str(run.parent))
    assert (champion.number, champion.run, champion.start) == (2, None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "is champion 1 already"),
        (["--rollback", "RUN"], "champion 1 is the first"),
        (["--rollback", "--history", "RUN"], "one of --rollback, --history and --into"),
        (["--history", "nothing"], "there is no champion.json"),
        (["nothing"], "nothing does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_two(
    command: Promote, make_run: Callable[[str], Path], arguments: list[str], said: str
) -> None:
    run = make_run("1")
    command("promote", run)
    code, _, error = command("promote", *(str(run) if argument == "RUN" else argument for argument in arguments))
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_nothing_to_do_is_no_error_and_code_three(
    command: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*arguments: Any) -> None:
        raise NothingToDo("judged before: nothing to do")

    monkeypatch.setattr("tlray.workflows.retrain.flow.retrain", judged)
    (tmp_path / "birds.yaml").write_text(dump_config(config_of(tmp_path)))
    assert command("retrain", tmp_path / "birds.yaml") == (3, "judged before: nothing to do", "")
