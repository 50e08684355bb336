"""The demo is one run, whether it is started by `tlray demo` or from configs/demo.yaml."""

from pathlib import Path

from tlray.config.file import parse_config
from tlray.config.search_space import list_trials
from tlray.workflows.demo import demo_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_demo_command_and_its_configuration_file_are_the_same_run() -> None:
    assert demo_config("~/tlray-runs") == parse_config((CONFIGS / "demo.yaml").read_text())


def test_the_demo_tries_all_five_strategies_in_at_least_eight_trials_beside_the_baseline() -> None:
    trials = list_trials(demo_config("~/tlray-runs"))
    assert trials[0].is_baseline
    assert len(trials) > 8
    strategies = {trial.strategy.strategy for trial in trials[1:]}
    assert strategies == {"linear_probe", "partial", "gradual", "full", "scratch"}
