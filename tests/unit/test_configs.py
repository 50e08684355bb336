"""Every configuration that the project ships is read by the same function as a user's own."""

from pathlib import Path

import pytest

from tlray.config.file import dump_config, parse_config

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_loads_and_its_dump_loads_to_the_same(path: Path) -> None:
    config = parse_config(path.read_text(), source=path.name)
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_opens_with_a_comment_that_says_how_to_run_it(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"configs/{path.name}" in line for line in header)


def test_there_are_shipped_configurations() -> None:
    assert {"demo.yaml", "images.yaml"} <= {path.name for path in CONFIGS}
