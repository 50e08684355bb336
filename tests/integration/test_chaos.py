"""Five seeded rounds of `python -m tests.chaos`, and what its verdicts rest on."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.chaos.__main__ import COUNTED, chosen_rounds, deck, main, parse
from tests.chaos.compare import json_differences
from tests.chaos.damage import damage_one, kind_of, repair
from tests.chaos.kinds import KINDS
from tests.chaos.state import epochs_again, error_line, phase_of

LATE = 1156  # a seed whose five rounds begin where little is left to do: two of them in the finished run


@pytest.mark.slow
@pytest.mark.ray
def test_five_seeded_rounds_come_to_what_the_undisturbed_run_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["power-cut", "flip", "cut", "missing"]
    code = main(["--rounds", "5", "--seed", str(LATE), "--kinds", *kinds])
    lines = capsys.readouterr().out.splitlines()
    counts = json.loads(lines[-1])
    assert code == 0, "\n".join(lines)
    assert counts["rounds"] == 5
    assert {name: counts[name] for name in COUNTED} == dict.fromkeys(COUNTED, 0)


def test_a_round_is_the_same_however_many_others_there_are() -> None:
    alone = chosen_rounds(parse(["--seed", "3", "--round", "37"]))
    among = chosen_rounds(parse(["--seed", "3", "--rounds", "100"]))
    assert alone == [among[37]]
    assert sorted(kind for _, kind in among) == sorted(deck(0))
    parts = [chosen_rounds(parse(["--seed", "3", "--rounds", "100", "--part", f"{part}/3"])) for part in (1, 2, 3)]
    assert sorted(one for part in parts for one in part) == among
    assert {kind for _, kind in among} == set(KINDS)


def test_an_epoch_that_was_kept_and_is_trained_again_is_counted() -> None:
    text = "a: epoch 2/3, val\na: epoch 3/3, val\nb: epoch 1/3, val\nb: epoch 1/3, val\n"
    assert epochs_again(text, {"a": 2}) == {"a": 1, "b": 1}
    assert not epochs_again(text.replace("b: epoch 1/3, val\n", "", 1), {"a": 1})


def test_a_phase_is_read_from_output_and_files() -> None:
    begun = "run folder: x\n"
    planned = f"{begun}prepared: 48 of 48 images\n20 train, 10 val, 10 test images of 3 classes\n"
    assert phase_of(begun, ()) == "preparing"
    assert phase_of(planned, ()) == "pass"
    assert phase_of(f"{planned}003-full: epoch 1/3, val\n", ()) == "training"
    assert phase_of(f"{planned}003-full: epoch 3/3, val\n", ()) == "scoring"
    assert phase_of(f"{planned}leaderboard\n", ("r/report.html",)) == "exporting"


@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_damage_changes_one_file_and_is_repaired(how: str, tmp_path: Path) -> None:
    names = ("sweep/1/plan.json", "sweep/1/trials/000-a/trial.json", "activations/k/shards/s", "sweep/1/DONE")
    for name in names:
        (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).write_text(f"content of {name}")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    damage = damage_one(tmp_path / "damaged", names, how, random.Random(0))

    def content(folder: str) -> dict[str, bytes]:
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files}

    differing = {name for name in names if content("damaged").get(name) != content("whole")[name]}
    assert differing == {damage.name}
    assert damage.kind == kind_of(damage.name) != "other"
    repair(tmp_path / "damaged", damage)
    assert content("damaged") == content("whole")


def test_only_what_depends_on_the_clock_may_differ_between_two_leaderboards() -> None:
    row = {"trial_id": "a", "val_loss": 0.5, "seconds": 1.0, "images_seen": 10, "checkpoint": "/x/trials/a/epoch-1"}
    later = row | {"seconds": 9.0, "images_seen": 20, "checkpoint": "/y/trials/a/epoch-1", "val_loss": 0.500001}
    assert json_differences({"rows": [row]}, {"rows": [later]}) == []
    assert json_differences({"rows": [row]}, {"rows": [row | {"val_loss": 0.6}]}) == [
        "rows[0].val_loss: 0.5 became 0.6"
    ]
    assert json_differences({"rows": [row]}, {"rows": []})
    assert json_differences(row, row | {"checkpoint": "/x/trials/b/epoch-1"})


def test_of_several_error_lines_none_is_the_clear_one() -> None:
    assert error_line("run folder: x\nerror: y is damaged\n") == "error: y is damaged"
    assert error_line("error: one\nerror: two\n") == ""
