"""The winner's second training, on the training and the validation images; runs/refit.py says what it is for.

result = refit_trial(load_run(run_uri), "003-resnet18-full", local_worker(), report)
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.data.images import SPLITS, Images
from tlray.data.manifest import Manifest
from tlray.runs.prepare import Run
from tlray.runs.refit import TRAINED, refit_config, refit_uri
from tlray.runs.results import TrialResult
from tlray.runs.trials import read_trial_result, trial_uri
from tlray.training.epoch import Report
from tlray.training.trial import manifest_images, run_trial
from tlray.training.worker import Worker


def refit_trial(run: Run, trial_id: str, worker: Worker, report: Report) -> TrialResult:
    """Train, or go on training, and score the last epoch on the test split. Frozen blocks compute live.

    What lies in its folder of another winner's epochs is removed first.
    """
    winner = read_trial_result(run.uri, trial_id)
    assert winner is not None, "a winner has a row"
    trial = refit_config(next(trial for trial in run.trials if trial.trial_id == trial_id), winner)
    home = refit_uri(run.uri)
    _remove_outdated(home, trial_id, trial.recipe.epochs)
    images = replace(manifest_images(with_validation(run.manifest), run.config.data), chooses_epoch=False)
    result = run_trial(trial, home, worker, images, report)
    assert result is not None, "a single worker leads"
    return result


def with_validation(manifest: Manifest) -> Manifest:
    """The manifest with its validation images in the training split too."""
    val = manifest.split("val").table
    codes = pa.array(np.full(len(val), SPLITS.index("train")), val.schema.field("split").type)
    copies = val.set_column(val.schema.get_field_index("split"), val.schema.field("split"), codes)
    assert isinstance(manifest.images, Images)
    return replace(manifest, images=Images(pa.concat_tables([manifest.images.table, copies])))


def _remove_outdated(home: str, trial_id: str, epochs: int) -> None:
    """A training with another number of epochs: the trial has been trained again since, and chosen another one.

    Its rates followed from that number, so it is no beginning of this training either.
    """
    marker = trial_uri(home, trial_id, TRAINED)
    if storage.exists(marker) and storage.read_text(marker) != str(epochs):
        for file in list(storage.list_files(trial_uri(home, trial_id))):
            storage.delete(file.uri)
    storage.write_text(marker, str(epochs))
