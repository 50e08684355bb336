"""A run's images as its trials see them, from the run folder: with the activations that the plan has materialised.

images = run_images(run_uri)
"""

import dataclasses
from functools import lru_cache

from tlray.activations.charges import load_charges
from tlray.activations.location import open_store
from tlray.activations.planned import source_of
from tlray.config import TrialConfig
from tlray.data.batch import Streams
from tlray.data.windows import windows_of
from tlray.models.backbone import Backbone
from tlray.runs.prepare import load_run
from tlray.training.activations import activation_streams
from tlray.training.trial import TrialImages, manifest_images
from tlray.training.worker import Worker


@lru_cache(maxsize=1)
def run_images(run_uri: str) -> TrialImages:
    """Read once per process; to be called when the activation pass is over."""
    run = load_run(run_uri)
    store = open_store(run.config)
    windows = windows_of(run.manifest.split("train"), run.config.data)

    def open_activations(backbone: Backbone, num_frozen: int, trial: TrialConfig, worker: Worker) -> Streams | None:
        source = source_of(run.plan.activations, trial.trial_id, num_frozen)
        return None if source is None else activation_streams(run.manifest, source, trial, worker, store, windows)

    images = manifest_images(run.manifest, run.config.data)
    return dataclasses.replace(images, open_activations=open_activations, charged_images=load_charges(run_uri))
