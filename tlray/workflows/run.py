"""A whole run: shortlist, sweep, leaderboard, exports, report, DONE. `tlray run`, `tlray resume`, `tlray rank`, jobs/.

    outcome = run(config, new_run_uri(config), Console())
    outcome = resume(run_uri, Console())

Every stage reads what the one before it has written to the run folder, so a resume repeats none that is complete.
"""

import io
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from tlray import storage
from tlray.activations.location import open_store
from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.distributed.activation_pass import run_activation_pass
from tlray.distributed.cluster import connect
from tlray.distributed.on_cluster import conclude_on_cluster, plan_on_cluster, select_on_cluster
from tlray.distributed.predict_pass import predict_on_cluster
from tlray.distributed.prepare_pass import prepare_on_cluster
from tlray.distributed.ranking import rank_on_cluster
from tlray.distributed.ready import make_ready
from tlray.distributed.refit import refit_on_cluster
from tlray.distributed.sweep import run_sweep
from tlray.errors import BackboneError, TlrayError, TrialError, UnreachableError
from tlray.inference.output import PredictionSummary
from tlray.planning.within_budget import check_start, time_to_plan, too_slow, within_budget
from tlray.process.began import command_began, load
from tlray.process.console import PlainConsole
from tlray.process.ending import interruptible
from tlray.ranking.result import Ranking, describe_choice, save_ranking, shortlisted, wants_shortlist
from tlray.ranking.tables import ranking_table
from tlray.runs.budget.choice import limit_seconds
from tlray.runs.features import features_config, write_features
from tlray.runs.lease import hold_run
from tlray.runs.plan import PlannedRun
from tlray.runs.prepare import Run, finish, load_run, prepare_run
from tlray.runs.results import Outcome
from tlray.runs.trials import load_results
from tlray.training.mend import mend
from tlray.workflows.progress import PredictionProgress, SweepProgress

BEFORE_THE_RUN = "start it again: images and activations that it had prepared are kept"


def run(config: RunConfig, run_uri: str, console: Console, manifest: Manifest | None = None) -> Outcome:
    """Do all that `config` asks for; InputError before anything is spent where it cannot be done.

    `manifest`: of the same data, from `make_manifest_on_cluster`.
    """
    began = command_began()
    with interruptible(BEFORE_THE_RUN):
        if math.isfinite(limit_seconds(config)):
            check_start(config, load(), time.monotonic() - began)
        connect()
        _make_ready(config, console)
        config = select_on_cluster(config)
        if manifest is None:
            _prepare_images(config, console)
        planned = _shortlist_and_plan(config, run_uri, console, manifest, began)
        planned = within_budget(planned, time.monotonic() - began)
    with interruptible(goes_on(run_uri)), _resumable(run_uri), hold_run(run_uri, "tlray run"):
        prepared = prepare_run(planned, run_uri)
        _say_what_was_found(prepared, console)
        return _sweep_and_conclude(prepared, console, began)


def resume(run_uri: str, console: Console) -> Outcome:
    """Go on with an interrupted run: finished trials stay finished, others continue from their last checkpoint."""
    began = command_began()
    with interruptible(goes_on(run_uri)), _resumable(run_uri):
        loaded = load_run(run_uri)  # before Ray is started: it may be no run folder
        with hold_run(loaded.uri, "tlray resume"):
            return _resumed(loaded, console, began)


def _resumed(loaded: Run, console: Console, began: float) -> Outcome:
    mend(loaded)
    connect()
    _make_ready(loaded.config, console)
    finished = [result.trial_id for result in load_results(loaded.uri) if result.status != "failed"]
    console.print(f"{len(finished)} of {len(loaded.trials)} trials are finished already", highlight=False)
    return _sweep_and_conclude(loaded, console, began)


def features(config: RunConfig, run_uri: str, console: Console) -> tuple[str, ...]:
    """Compute every backbone's features of every image, where the store lacks them -> Parquet files, one a backbone."""
    with interruptible(BEFORE_THE_RUN):
        connect()
        _make_ready(config, console)
        _prepare_images(config, console)
        prepared = prepare_run(plan_on_cluster(features_config(select_on_cluster(config))), run_uri)
        _say_what_was_found(prepared, console)
        with SweepProgress((), (), console) as progress:
            failures = run_activation_pass(prepared, progress.activations_computed)
        if failures:
            raise BackboneError("; ".join(failures.values()))
        written = write_features(prepared, open_store(prepared.config))
        finish(prepared)
        return written


def rank(config: RunConfig, run_uri: str, console: Console) -> Ranking:
    """Score every backbone on features of a subset of the training images; they stay in the store for the sweep."""
    with interruptible(BEFORE_THE_RUN):
        connect()
        _make_ready(config, console)
        _prepare_images(config, console)
        return _rank(select_on_cluster(config), run_uri, console)[1]


def predict_many(model_ref: str, images: Sequence[str], output: str, console: Console) -> PredictionSummary:
    """Classify every image of some locations on the cluster, as Parquet files below `output`."""
    with interruptible("the same command again goes on with what is missing"):
        return predict_on_cluster(model_ref, images, output, PredictionProgress(console))


def goes_on(run_uri: str) -> str:
    """The remedy where a run has begun."""
    return f"`tlray resume {run_uri}` goes on, with what each running trial did since its last checkpoint lost at most"


@contextmanager
def _resumable(run_uri: str) -> Iterator[None]:
    """A store that stays away ends a run that has begun with what to do when it is back, not as wrong input."""
    try:
        yield
    except UnreachableError as error:
        raise TrialError(f"{error}; {goes_on(run_uri)}") from None


def _make_ready(config: RunConfig, console: Console) -> None:
    make_ready(config, lambda line: console.print(line, highlight=False, markup=False))


def _prepare_images(config: RunConfig, console: Console) -> None:
    def progress(done: int, total: int) -> None:
        console.print(f"prepared: {done} of {total} images", highlight=False)

    prepare_on_cluster(config, progress)


def _shortlist_and_plan(
    config: RunConfig, run_uri: str, console: Console, manifest: Manifest | None, began: float
) -> PlannedRun:
    """The plan of all backbones, or of the best where some are to be left out; `strategies: auto` needs a ranking too.

    The run folder holds the chosen ones from its start, so a resume ranks nothing again. ConfigError for a budget that
    ends before the plan is made.
    """
    ranking = None
    if wants_shortlist(config) or config.strategies == "auto":
        config, ranking, manifest = _rank(config, run_uri, console)
        console.print(ranking_table(ranking))
        console.print(describe_choice(ranking), highlight=False, markup=False)
        config = shortlisted(config, ranking)
    try:
        seconds = time_to_plan(config, load(), time.monotonic() - began)
        return plan_on_cluster(config, manifest, ranking, seconds=seconds)
    except TimeoutError:
        raise too_slow(config, time.monotonic() - began) from None


def _rank(config: RunConfig, run_uri: str, console: Console) -> tuple[RunConfig, Ranking, Manifest]:
    """Writes ranking.json; what it worked from is a folder of its own, whose name no other run's shards carry."""
    folder = storage.join(run_uri, f"ranking-{run_uri.rpartition('/')[2]}")
    with SweepProgress((), (), console) as progress:
        config, ranking, manifest = rank_on_cluster(config, folder, progress.activations_computed)
    save_ranking(ranking, run_uri)
    return config, ranking, manifest


def _sweep_and_conclude(run: Run, console: Console, began: float) -> Outcome:
    """`began`: the start of the command, from which a budget counts."""
    finished = [result.trial_id for result in load_results(run.uri) if result.status != "failed"]
    storage.be_patient()
    with SweepProgress(run.trials, finished, console) as progress:
        run_sweep(run, progress, began)
    refit_on_cluster(run, lambda line: console.print(line, highlight=False, markup=False))
    elsewhere = conclude_on_cluster(run.config, _conclude_in_words, run.uri, console.width, console.is_terminal)
    if elsewhere is None:
        from tlray.workflows.conclude import conclude  # torch, matplotlib and onnx: not before the sweep is over

        return conclude(run, console)
    outcome, words = elsewhere
    console.print(Text.from_ansi(words))
    if isinstance(outcome, TlrayError):
        raise outcome
    return outcome


def _conclude_in_words(run_uri: str, width: int, with_colours: bool) -> tuple[Outcome | TlrayError, str]:
    """`conclude` in another process: its outcome, or why there is none, and what it has printed."""
    from tlray.workflows.conclude import conclude

    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=with_colours)
    outcome: Outcome | TlrayError
    try:
        outcome = conclude(load_run(run_uri), console)
    except TlrayError as error:
        outcome = error
    assert isinstance(console.file, io.StringIO)
    return outcome, console.file.getvalue()


def _say_what_was_found(run: Run, console: Console) -> None:
    images = ", ".join(f"{len(run.manifest.split(split))} {split}" for split in ("train", "val", "test"))
    console.print(
        f"{images} images of {len(run.manifest.classes)} classes, {len(run.manifest.bad)} left out; "
        f"{len(run.trials)} trials",
        highlight=False,
    )
    for note in (*run.manifest.notes, *run.plan.notes):
        console.print(note, highlight=False, markup=False)
    for warning in run.manifest.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
