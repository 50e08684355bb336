"""One trial of a configuration in this process, without Ray: on a GPU box, in a debugger, in a profiler.

outcome = run_local(config, "001-resnet18-full", new_run_uri(config), Console())
"""

from rich.console import Console

from tlray.activations.local_pass import compute_here
from tlray.config import RunConfig
from tlray.errors import ConfigError
from tlray.planning.planner import plan_run
from tlray.runs.board import append_result
from tlray.runs.lease import hold_run
from tlray.runs.prepare import Run, prepare_run
from tlray.runs.refit import wanted_refit
from tlray.training.epoch import EpochMetrics
from tlray.training.refit import refit_trial
from tlray.training.run_images import run_images
from tlray.training.trial import run_trial
from tlray.training.worker import local_worker
from tlray.workflows.conclude import Outcome, conclude


def run_local(config: RunConfig, trial_id: str | None, run_uri: str, console: Console) -> Outcome:
    """Train the baseline and the trial named `trial_id` (by default the first), then rank and export them."""
    planned = plan_run(config)
    ids = [trial.trial_id for trial in planned.trials if not trial.is_baseline]
    if trial_id is not None and trial_id not in ids:
        raise ConfigError(f"there is no trial {trial_id!r}; this configuration has {', '.join(ids)}")
    with hold_run(run_uri, "jobs/train_local.py"):
        return _train(prepare_run(planned, run_uri), trial_id or ids[0], console)


def _train(run: Run, trial_id: str, console: Console) -> Outcome:
    sources = [source for source in run.plan.activations if trial_id in source.trials]

    def progress(done: int, total: int) -> None:
        console.print(f"frozen work: {done} of {total} images", highlight=False)

    worker = local_worker(run.config.sweep.gpus_per_worker)
    compute_here(run.uri, run.config, run.manifest, sources, worker.device, progress)
    images = run_images(run.uri)
    for trial in run.trials:
        if trial.is_baseline or trial.trial_id == trial_id:
            result = run_trial(trial, run.uri, worker, images, _Printer(trial.trial_id, console))
            assert result is not None, "a single worker leads"
            append_result(run.uri, result)
    winner = wanted_refit(run.uri, run.config)
    if winner is not None:
        refit_trial(run, winner, worker, _Printer(f"refit of {winner}", console))
    return conclude(run, console)


class _Printer:
    """Reports epochs to a console."""

    def __init__(self, trial_id: str, console: Console) -> None:
        self._trial_id, self._console = trial_id, console

    def __call__(self, metrics: EpochMetrics) -> None:
        self._console.print(
            f"{self._trial_id}: epoch {metrics.epoch}, train loss {metrics.train_loss:.4f}, "
            f"val accuracy {metrics.val_accuracy:.3f}, {metrics.images_per_second:.0f} images/s",
            highlight=False,
        )
