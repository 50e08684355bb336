"""The exports of a run are of its best trials, whole, whatever happened before; a champion's bundle stays.

Run: python -m pytest tests/unit/test_exports.py
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import write_board

from tests.plans import empty_plan
from tlray import storage
from tlray.config import RunConfig
from tlray.config.search_space import list_trials
from tlray.data.manifest import make_manifest
from tlray.errors import DataError, StorageError
from tlray.export import bundle as bundle_module
from tlray.export import load
from tlray.export.formats import Agreement
from tlray.inference.predict import evaluate, find_export
from tlray.runs.board import write_leaderboard
from tlray.runs.bundle_sums import CHECKSUMS, check_whole
from tlray.runs.champion import load_champion, promote, read_champion, rollback
from tlray.runs.plan import PlannedRun
from tlray.runs.prepare import Run, load_run, prepare_run
from tlray.runs.results import LeaderboardRow, TrialResult
from tlray.runs.trials import load_results, read_recorded, write_trial_result
from tlray.training.run_images import run_images
from tlray.training.trial import run_trial
from tlray.training.worker import local_worker
from tlray.workflows.retrain.by_hand import promote_by_hand


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a baseline and two trials, all trained, without leaderboard and exports."""
    folder = tmp_path_factory.mktemp("exports")
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    config = RunConfig.model_validate(
        {
            "name": "colours",
            "storage": str(folder),
            "data": {"train": str(image_folder), "val_fraction": 0.3, "test_fraction": 0.3},
            "backbones": [network],
            "strategies": ["full"],
            "search_space": {"lr": {"grid": [1e-5, 0.01]}},
            "training": {"epochs": 2, "batch_size": 4, "augmentation": "none"},
            "baseline": {"backbone": network},
        }
    )
    manifest = make_manifest(config.data)
    plan = empty_plan(name="colours", num_classes=3)
    run = prepare_run(PlannedRun(config, manifest, tuple(list_trials(config)), plan), str(folder / "colours" / "1"))
    for trial, val_accuracy in zip(run.trials, (0.1, 0.5, 0.9), strict=True):  # so that the order is known
        result = run_trial(trial, run.uri, local_worker(), run_images(run.uri), lambda metrics: None)
        assert result is not None
        recorded = read_recorded(run.uri, trial.trial_id)
        assert recorded is not None
        write_trial_result(run.uri, result.model_copy(update={"val_accuracy": val_accuracy}), recorded.files)
    return Path(run.uri)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    return load_run(str(shutil.copytree(trained, tmp_path / "colours" / "1")))


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tracing takes seconds and is no matter here: the formats are empty. The bundles that were made are listed."""
    made: list[str] = []

    def write_formats(model: object, images: object, folder: Path, name: str) -> None:
        made.append(name)
        for file in ("model.onnx", "model.pt2"):
            (folder / file).write_bytes(b"a format")

    agreement = Agreement(num_images=1, largest_logit=1.0, allowed_difference=1.0, max_abs_difference={"model.pt2": 0})
    monkeypatch.setattr(bundle_module, "write_formats", write_formats)
    monkeypatch.setattr(bundle_module, "check_formats", lambda *arguments: agreement)
    return made


def export(run: Run, top_k: int = 1) -> tuple[str, ...]:
    """As `tlray export` and the end of a run do it."""
    from tlray.workflows.exports import export_best

    return export_best(run, write_leaderboard(run.uri), top_k)


def as_if_not_ended(run: Run, trial_id: str) -> Callable[[], None]:
    """Take a trial's final row away -> what brings it back."""
    path = Path(run.uri, "trials", trial_id, "result.json")
    row = path.read_bytes()
    path.unlink()

    def bring_back() -> None:
        path.write_bytes(row)

    return bring_back


def champion(run: Run) -> LeaderboardRow:
    best = write_leaderboard(run.uri).champion
    assert best is not None
    return best


def labelled_test_images(run: Run, folder: Path) -> str:
    """The test split as a folder of classes."""
    for image in run.manifest.split("test"):
        path = folder / run.manifest.classes[image.label] / Path(image.uri).name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image.uri, path)
    return str(folder)


def exports_of(run: Run) -> dict[str, str]:
    """Folder name -> trial."""
    return {
        path.parent.name: json.loads(path.read_text())["trial_id"]
        for path in Path(run.uri, "exports").glob("*/config.json")
    }


def test_the_exported_model_is_the_leaderboards_champion_also_when_that_ended_after_the_first_export(
    run: Run, tmp_path: Path
) -> None:
    late = champion(run)
    late_ends = as_if_not_ended(run, late.trial_id)
    (first,) = export(run)
    assert exports_of(run) == {"1-test_resnet": champion(run).trial_id}
    assert champion(run).trial_id != late.trial_id

    late_ends()
    write_leaderboard(run.uri)
    said = f"{late.trial_id}, number 1 of .* has no export .*is of {trial_of(first)}"
    with pytest.raises(DataError, match=said):
        find_export(run.uri)  # the run was killed before it exported
    assert export(run) == (first,)
    assert exports_of(run) == {"1-test_resnet": late.trial_id}
    assert find_export(run.uri) == first
    measured = evaluate(run.uri, labelled_test_images(run, tmp_path / "test"))
    assert measured.accuracy == pytest.approx(late.test_accuracy)
    assert not list(Path(run.uri, "exports").glob(".new-*"))


def trial_of(bundle: str) -> str:
    return str(json.loads(Path(bundle, "config.json").read_text())["trial_id"])


def test_a_whole_export_of_the_same_model_is_not_made_again(run: Run, exported: list[str]) -> None:
    (first,) = export(run)
    before = {path: path.stat().st_mtime_ns for path in Path(first).iterdir()}
    assert export(run) == (first,)
    assert len(exported) == 1
    assert {path: path.stat().st_mtime_ns for path in Path(first).iterdir()} == before


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("SHA256SUMS", "flipped"),
        ("SHA256SUMS", "missing"),
        ("config.json", "cut"),
        ("metrics.json", "flipped"),
        ("model.safetensors", "flipped"),
        ("model.pt2", "empty"),
        ("MODEL_CARD.md", "missing"),
    ],
)
def test_a_damaged_export_is_made_again(run: Run, exported: list[str], name: str, damage: str) -> None:
    (first,) = export(run)
    DAMAGE[damage](Path(first, name))
    assert export(run) == (first,)
    assert len(exported) == 2
    check_whole(first)
    assert load(first).classes == run.manifest.classes


def test_an_export_of_another_checkpoint_of_the_same_trial_is_replaced(run: Run) -> None:
    (first,) = export(run)
    before = json.loads(Path(first, "config.json").read_text())["checkpoint_sha256"]
    row = champion(run)
    other = next(one for one in load_results(run.uri) if one.trial_id != row.trial_id and not one.is_baseline)
    recorded = read_recorded(run.uri, row.trial_id)
    assert recorded is not None
    data = checkpoint(run, other).read_bytes()  # as if the trial had been trained again
    checkpoint(run, row).write_bytes(data)
    files = {**recorded.files, checkpoint(run, row).name: hashlib.sha256(data).hexdigest()}
    write_trial_result(run.uri, recorded.result, files)
    with pytest.raises(DataError, match="has no export"):
        find_export(run.uri)
    assert export(run) == (first,)
    config = json.loads(Path(first, "config.json").read_text())
    assert config["trial_id"] == row.trial_id
    assert config["checkpoint_sha256"] == hashlib.sha256(data).hexdigest() != before
    assert find_export(run.uri) == first


def test_exports_of_ranks_that_are_still_right_stay_and_others_go(run: Run) -> None:
    assert len(export(run, 2)) == 2
    assert len(export(run, 1)) == 1
    ranks = {row.trial_id: row.rank for row in write_leaderboard(run.uri).rows}
    assert {name: f"{ranks[trial]}-test_resnet" for name, trial in exports_of(run).items()} == {
        name: name for name in exports_of(run)
    }
    assert len(exports_of(run)) == 2
    last = max(exports_of(run))
    Path(run.uri, "exports", last).rename(Path(run.uri, "exports", "9-test_resnet"))
    Path(run.uri, "exports", "mine").mkdir()
    (Path(run.uri, "exports", "mine") / "notes.txt").write_text("keep")
    export(run, 1)
    assert sorted(path.name for path in Path(run.uri, "exports").iterdir()) == [min(exports_of(run)), "mine"]


def test_an_export_whose_checkpoint_is_gone_stays(run: Run, exported: list[str]) -> None:
    (first,) = export(run)
    for path in Path(run.uri).glob("trials/*/epoch-*.safetensors"):
        path.unlink()
    assert export(run) == (first,)
    assert len(exported) == 1


def checkpoint(run: Run, row: TrialResult) -> Path:
    return Path(run.uri, "trials", row.trial_id, f"epoch-{row.best_epoch:04d}.safetensors")


class Killed(BaseException):
    """What a kill looks like from within."""


def test_a_replacement_killed_at_any_write_leaves_the_old_bundle_or_the_new_one_and_the_next_one_ends_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = champion(run)
    late_ends = as_if_not_ended(run, late.trial_id)
    early = champion(run).trial_id
    (first,) = export(run)
    late_ends()
    shutil.copytree(run.uri, tmp_path / "kept")
    found = set()
    for number in range(1, 100):
        shutil.rmtree(run.uri)
        shutil.copytree(tmp_path / "kept", run.uri)
        write_leaderboard(run.uri)
        with monkeypatch.context() as patch:
            ended = killed_at(number, patch, lambda: export(run))
        bundles = [path.parent for path in Path(run.uri, "exports").glob("*/SHA256SUMS")]
        assert bundles, "at every moment there is a whole bundle"
        for bundle in bundles:
            check_whole(str(bundle))
        try:
            trial = trial_of(find_export(run.uri))
            assert trial == late.trial_id
        except DataError:
            assert [trial_of(str(bundle)) for bundle in bundles] == [early]
        found.add(tuple(sorted(bundle.name.partition("-")[0] for bundle in bundles)))
        assert export(run) == (first,)
        assert exports_of(run) == {"1-test_resnet": late.trial_id}
        assert not list(Path(run.uri, "exports").glob(".new-*"))
        if ended:
            break
    assert 15 < number < 99, "every write was tried"
    assert found == {("1",), (".new", "1"), (".new",)}


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> bool:
    """Do `work`, whose `number`-th change of storage is its last; whether it had fewer."""
    left = [number]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return change(*arguments)

        return instead

    for name in ("write_bytes", "write_text", "delete", "create_exclusive", "replace"):
        monkeypatch.setattr(storage, name, counted(getattr(storage, name)))
    monkeypatch.setattr("tlray.storage.local.copy", counted(storage.local.copy))
    try:
        work()
    except Killed:
        return False
    return True


def test_a_bundle_that_was_promoted_is_not_replaced_by_another_model(run: Run) -> None:
    late = champion(run)
    late_ends = as_if_not_ended(run, late.trial_id)
    (first,) = export(run)
    promoted = promote_by_hand(run.uri)
    assert promoted.export == first
    late_ends()
    (second,) = export(run)
    assert second != first
    assert export(run) == (second,)
    home = str(Path(run.uri).parent)
    assert trial_of(find_export(f"{home}/champion.json")) == load_champion(home).trial_id == promoted.trial_id
    assert trial_of(find_export(run.uri)) == late.trial_id


def test_a_champion_whose_bundle_holds_another_model_or_is_damaged_is_refused(run: Run) -> None:
    (first,) = export(run)
    promote_by_hand(run.uri)
    home = str(Path(run.uri).parent)
    held = read_champion(home)
    assert held is not None
    other = held.champion.model_copy(update={"checkpoint_sha256": "0" * 64})
    promote(home, other, held, by="hand", reason="as if the bundle had been replaced since")
    with pytest.raises(StorageError, match="the export of champion 2, holds another model now"):
        find_export(f"{home}/champion.json")
    rollback(home)
    Path(first, "model.onnx").write_bytes(b"")
    with pytest.raises(StorageError, match=r"is damaged \(.*model.onnx is corrupted"):
        find_export(f"{home}/champion.json")


def test_a_run_of_baseline_alone_has_nothing_to_export(tmp_path: Path) -> None:
    write_board(str(tmp_path), is_baseline=True)
    with pytest.raises(DataError, match="only the baseline"):
        find_export(str(tmp_path))


def test_a_line_of_checksums_cannot_name_a_file_elsewhere(run: Run) -> None:
    (first,) = export(run)
    sums = Path(first, CHECKSUMS)
    sums.write_text(sums.read_text().replace("config.json", "../config.json"))
    with pytest.raises(DataError, match=r"SHA256SUMS is corrupted in line 2"):
        load(first)
