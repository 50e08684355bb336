"""The winner trained once more, on the training and the validation images together: `export.refit`. No torch.

    trial_id = wanted_refit(run)                       # None where there is nothing to train
    refit = read_refit(run_uri, winner)                # its row, once it has ended

RUN/refit/ is laid out as a run: refit/trials/<id>/ is the folder of the winner's second training, and a resume goes on
with it like with any trial. It has the epochs that the choice found, and its last one is the result: there are no other
images left to choose an epoch by. A trial that has a refit is exported as the refit.
"""

from tlray import storage
from tlray.config import Recipe, RunConfig, TrialConfig
from tlray.runs.calibration import calibrate
from tlray.runs.combined_rows import Calibration, RefitRow
from tlray.runs.predictions import load_correctness, load_probabilities
from tlray.runs.results import TrialResult, paired_gain, ranked
from tlray.runs.trials import Recorded, checkpoint_of, load_results, read_recorded

FOLDER = "refit"
TRAINED = "epochs"  # a file in the folder of a refit that has begun: how many epochs it is to have


def refit_uri(run_uri: str) -> str:
    """What takes the place of the run folder in the names of a refit's files."""
    return storage.join(run_uri, FOLDER)


def wanted_refit(run_uri: str, config: RunConfig) -> str | None:
    """The trial that is still to be trained again: the winner of a sweep that is over."""
    results = load_results(run_uri)
    winner = next((result for result in ranked(results) if not result.is_baseline), None)
    if not config.export.refit or winner is None or any(result.may_pass for result in results):
        return None
    return winner.trial_id if read_refit(run_uri, winner) is None else None


def refit_config(trial: TrialConfig, winner: TrialResult) -> TrialConfig:
    """As the winner was trained, but for the epochs: those up to its best one. A solved probe is solved again."""
    assert winner.best_epoch is not None, "a winner has a best epoch"
    if "solver" in winner.params:
        return trial
    changes = {"epochs": winner.best_epoch, "patience": 0}
    return trial.model_copy(update={"recipe": Recipe.model_validate({**winner.params, **changes})})


def read_refit(run_uri: str, winner: TrialResult) -> Recorded | None:
    """The refit of this row; None where there is none, it failed, or the trial has been trained again since."""
    recorded = read_recorded(refit_uri(run_uri), winner.trial_id)
    if recorded is None or recorded.result.status == "failed" or recorded.result.epochs != winner.best_epoch:
        return None
    return recorded


def exported_checkpoint(run_uri: str, winner: TrialResult) -> tuple[str, str]:
    """(location, sha256) of the weights that a trial is exported with: its refit's where it has one."""
    home = run_uri if read_refit(run_uri, winner) is None else refit_uri(run_uri)
    return checkpoint_of(home, winner.trial_id)


def make_refit(run_uri: str, winner: Recorded, baseline: Recorded | None, *, seed: int) -> RefitRow | None:
    """The row of the winner's refit; None where there is none."""
    refit = read_refit(run_uri, winner.result)
    if refit is None:
        return None
    result = refit.result
    correct = load_correctness(refit_uri(run_uri), refit)
    over_best = paired_gain(correct, load_correctness(run_uri, winner), seed)
    gain: tuple[float | None, float | None, float | None] = (None, None, None)
    if baseline is not None and baseline.result.status != "failed":
        gain = paired_gain(correct, load_correctness(run_uri, baseline), seed)
    names = ("gain", "gain_low", "gain_high", "gain_over_best", "gain_over_best_low", "gain_over_best_high")
    return RefitRow(
        trial_id=result.trial_id,
        epochs=result.epochs,
        images_seen=result.images_seen,
        test_accuracy=result.test_accuracy or 0.0,
        test_top5_accuracy=result.test_top5_accuracy,
        test_macro_f1=result.test_macro_f1,
        **dict(zip(names, gain + over_best, strict=True)),
        seconds=result.seconds,
        calibration=_calibration(run_uri, winner, refit),
    )


def _calibration(run_uri: str, winner: Recorded, refit: Recorded) -> Calibration | None:
    """The winner's temperature, measured on the refit: the refit has been trained on the validation images."""
    val = load_probabilities(run_uri, winner, "val")
    test = load_probabilities(refit_uri(run_uri), refit, "test")
    if val is None or test is None:
        return None
    return calibrate(val.logs, val.labels, test.logs, test.labels)
