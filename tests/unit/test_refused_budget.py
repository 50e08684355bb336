"""A run whose budget is too small ends before anything is spent; no Ray starts."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tlray.config import RunConfig
from tlray.errors import ConfigError

pytest.importorskip("ray")

from tlray.workflows import run as workflow


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of a run has begun; none of it does anything, and the plan takes too long."""
    begun: list[str] = []

    def note(name: str) -> Any:
        def stage(*arguments: Any, **options: Any) -> Any:
            begun.append(name)
            return arguments[0] if arguments else None

        return stage

    for name in (
        "connect",
        "_make_ready",
        "select_on_cluster",
        "_prepare_images",
        "prepare_run",
        "_sweep_and_conclude",
    ):
        monkeypatch.setattr(workflow, name, note(name))

    def plan(*arguments: Any, seconds: float | None) -> Any:
        begun.append(f"plan in {'any time' if seconds is None else 'some seconds'}")
        raise TimeoutError

    monkeypatch.setattr(workflow, "plan_on_cluster", plan)
    monkeypatch.setattr(workflow, "load", lambda: 1.0)
    return begun


def config(tmp_path: Path, **budget: float) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "storage": str(tmp_path), "data": {"train": "d"}, "backbones": ["a"], "budget": budget}
    )


def test_a_budget_that_no_run_fits_starts_nothing(tmp_path: Path, stages: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^budget\.hours 0\.001 is too small"):
        workflow.run(config(tmp_path, hours=0.001), str(tmp_path / "run"), Console(quiet=True))
    assert stages == []


def test_a_plan_that_is_not_made_in_time_ends_the_run_without_a_run_folder(tmp_path: Path, stages: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^budget\.hours 0\.1 is too small: start and plan have taken"):
        workflow.run(config(tmp_path, hours=0.1), str(tmp_path / "run"), Console(quiet=True))
    assert stages == ["connect", "_make_ready", "select_on_cluster", "_prepare_images", "plan in some seconds"]
