"""`tlray models`: filters from the command line, the table at several widths, JSON, and the plot."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tlray import cli
from tlray.catalogue import ModelFacts, all_models
from tlray.cli.commands import app
from tlray.errors import ConfigError
from tlray.report.models_plot import pareto_front, write_models_plot
from tlray.report.models_table import models_table


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_has_every_fact_of_over_a_thousand_models() -> None:
    found = json.loads(run("--json"))
    assert len(found) > 1000
    assert len(found) == len(all_models())
    assert set(found[0]) == set(ModelFacts.__dataclass_fields__)


def test_options_filter_sort_and_limit() -> None:
    arguments = "--max-params 10M --max-size 30MB --max-gflops 1 --min-top1 75 --input 224 --licence apache-2.0"
    found = json.loads(run(*arguments.split(), "--trained-on", "in1k", "--sort", "top1", "--limit", "5", "--json"))
    accuracies = [facts["top1"] for facts in found]
    assert len(found) == 5
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(facts["num_params"] <= 1e7 and facts["input_size"] == 224 for facts in found)
    worst = json.loads(run("resnet", "--family", "resnet", "--sort", "top1", "--reverse", "--limit", "1", "--json"))
    assert worst[0]["top1"] < min(accuracies)


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--max-size", "30Q"], ["--sort", "beauty"], ["--family", "resnt"], ["--plot", "a.pdf"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["models", *arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_the_terminal_and_shows_more_where_there_is_room(width: int) -> None:
    chosen = ("timm/vit_large_patch14_clip", "timm/resnet50", "torchvision/resnet50")
    models = [facts for facts in all_models() if facts.id.startswith(chosen)]
    text = io.StringIO()
    Console(file=text, width=width).print(models_table(models, width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for heading in ("id", "top-1", "params", "GFLOPs", "MB"):
        assert heading in lines[1]
    assert ("trained on" in lines[1]) == (width >= 120)
    assert "accept_licences" in text.getvalue()
    ids = [line.split()[0] for line in lines[2:] if line.startswith(("timm/", "torchvision/"))]
    assert len(ids) == len(models)


def test_the_help_is_readable_in_80_columns() -> None:
    result = CliRunner().invoke(app, ["models", "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"  --?\S+( \S+)?  +\S", line) or not line.startswith("  --") for line in lines)


def test_the_front_is_what_nothing_smaller_or_equal_beats() -> None:
    sizes = [(10, 70.0), (10, 75.0), (20, 74.0), (30, 80.0), (40, 80.0), (50, 81.0)]
    models = [ModelFacts(id=f"{n}-{top1}", num_params=n, top1=top1) for n, top1 in sizes]
    assert [facts.id for facts in pareto_front(models)] == ["10-75.0", "30-80.0", "50-81.0"]


def test_a_plot_is_a_picture_or_a_page_with_the_name_of_every_model(tmp_path: Path) -> None:
    models = [facts for facts in all_models() if facts.library == "torchvision"]
    write_models_plot(models, str(tmp_path / "models.png"))
    with Image.open(tmp_path / "models.png") as picture:
        assert picture.width > 1000
    write_models_plot(models, str(tmp_path / "models.html"))
    page = (tmp_path / "models.html").read_text()
    for facts in models:
        assert f"<title>{facts.id}: {facts.top1} %" in page
    assert "efficientnet_b0</text>" in page  # on the front, and named
    with pytest.raises(ConfigError, match="none has a published accuracy"):
        write_models_plot([ModelFacts(id="a")], str(tmp_path / "none.png"))
