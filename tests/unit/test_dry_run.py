"""`--dry-run` says what a command would do, and leaves nothing behind; none of these starts Ray."""

from pathlib import Path

import pytest
import ray
import yaml

from tlray.cli import main
from tlray.config import RunConfig
from tlray.planning.planner import plan_run
from tlray.runs.prepare import new_run_uri, prepare_run
from tlray.runs.results import TrialResult
from tlray.runs.trials import write_trial_result


@pytest.fixture
def config(tmp_path: Path, image_folder: Path) -> RunConfig:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    return RunConfig.model_validate(
        {
            "name": "dry",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(image_folder)},
            "backbones": [network],
            "strategies": [{"strategy": "linear_probe", "solver": "gradient"}],
            "search_space": {"lr": {"grid": [0.01, 0.001]}},
            "training": {"epochs": 2, "batch_size": 8, "augmentation": "none"},
            "baseline": {"backbone": network, "training": {"epochs": 1}},
        }
    )


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with_ray = ray.is_initialized()  # by tests before
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--dry-run"])
    assert leaving.value.code == 0
    assert ray.is_initialized() == with_ray
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "dry run: nothing was started"
    return " ".join(output.split())


@pytest.mark.parametrize("command", ["run", "rank", "features"])
def test_a_dry_run_shows_the_work_and_makes_no_run_folder(
    command: str, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    output = printed(capsys, command, str(path))
    assert "expected: " in output
    assert ("001-test_resnet-linear_probe" in output) == (command == "run")
    assert "test_resnet 7/7" in output
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_a_dry_run_of_a_resume_names_what_is_left_and_trains_none_of_it(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare_run(plan_run(config), new_run_uri(config))
    scores = {"val_accuracy": 0.5, "test_accuracy": 0.5}
    for trial, status in zip(run.trials, ("completed", "failed"), strict=False):
        failed = status == "failed"
        write_trial_result(
            run.uri,
            TrialResult(
                trial_id=trial.trial_id,
                backbone=trial.backbone.id,
                weights="none",
                strategy=trial.strategy.label,
                params={},
                seed=0,
                is_baseline=trial.is_baseline,
                status=status,
                error="the node is gone" if failed else None,
                **({} if failed else scores),
            ),
        )
    before = sorted(Path(run.uri).rglob("*"))
    output = printed(capsys, "resume", run.uri)
    assert "000-baseline completed leaves it" in output
    assert "001-test_resnet-linear_probe failed: the node is gone runs it" in output
    assert "002-test_resnet-linear_probe no row yet runs it" in output
    assert "2 of 3 trials are left" in output
    assert sorted(Path(run.uri).rglob("*")) == before


def test_a_plan_refuses_a_budget_that_does_not_hold_the_run(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(SystemExit) as leaving:
        main(["plan", str(path), "budget.hours=0.001"])
    assert leaving.value.code == 2
    assert "budget.hours 0.001 is too small: start and plan took" in capsys.readouterr().err
