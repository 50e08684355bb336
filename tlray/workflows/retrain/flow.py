"""A retraining from the question whether there is anything to do to the promoted, or refused, challenger.

    record = retrain(config, Console())            # NothingToDo where data and settings were judged before

1. List the data; what has been judged already ends it here, with nothing started and nothing written.
2. Take the lease: one retraining at a time.
3. Read what is new; the same contents under other names or dates end it here.
4. Sweep, the champion's configuration first; what an interrupted retraining has begun goes on instead.
5. Judge challenger and champion on the same test images.
6. Promote or refuse, write the report, tell the webhook.

Every step leaves what the next one needs in the run folder or beside champion.json, so that a retraining killed
anywhere is started again by the same command. Ray and torch are imported from step 3 on.
"""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tlray import storage
from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.errors import NothingToDo, TlrayError
from tlray.process.ending import interruptible
from tlray.runs.champion import Champion, Held, champion_uri, check_export, problem_of, promote, read_champion
from tlray.runs.folder import FORMAT
from tlray.runs.lease import Lease, hold, hold_run
from tlray.runs.manifest import load_manifest
from tlray.runs.prepare import load_run, new_run_uri, with_absolute_locations
from tlray.workflows.retrain.changes import all_still_there, differing, list_data, settings_of
from tlray.workflows.retrain.record import Record, load_record, message, save_record
from tlray.workflows.retrain.search import search_config
from tlray.workflows.retrain.state import Judgement, Pending, State, load_state, save_state
from tlray.workflows.retrain.webhook import post

if TYPE_CHECKING:
    from tlray.runs.prepare import Run

LOCK = "retrain.lock"  # who retrains, beside champion.json
WEBHOOK = "TLRAY_WEBHOOK"  # of the environment
AGAIN = "the same retraining again goes on with it"


@dataclass(frozen=True)
class Job:
    """One retraining: what it was asked for and found before anything was started."""

    config: RunConfig  # locations absolute
    home: str  # <storage>/<name>
    listing: str  # of `list_data`
    settings: dict[str, Any]  # of `settings_of`
    console: Console

    def say(self, line: str) -> None:
        """One line however long, as locations are copied from it."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def retrain(config: RunConfig, console: Console) -> Record:
    """Retrain where there is something new, and promote what is better. See above; InputError as `tlray run`.

    NothingToDo: data and settings were judged before, or another retraining is at work.
    """
    with interruptible(AGAIN):
        job = _job(config, console)
        _end_if_judged(job, load_state(job.home))
        with hold(storage.join(job.home, LOCK), "another retraining") as held:
            state = load_state(job.home)
            _end_if_judged(job, state)  # by the one that held the lease just now
            return _retrain(job, state, held)


def look(config: RunConfig) -> str:
    """What `retrain` would do now, and why, in one line; NothingToDo as there. Lists the data, starts nothing."""
    job = _job(config, Console(quiet=True))
    state, champion = load_state(job.home), read_champion(job.home)
    _end_if_judged(job, state)
    if state.pending is not None and _goes_on(job, state.pending):
        return f"would go on with the interrupted retraining in {state.pending.run}"
    if champion is None or state.last is None:
        return "would sweep: there is no champion that came of a retraining"
    moved = "names, sizes or dates of the images have changed; nothing to do if their contents have not"
    return f"would sweep: {_changes(job, state.last, moved if state.last.listing != job.listing else None)}"


def _job(config: RunConfig, console: Console) -> Job:
    config = with_absolute_locations(config)
    home = storage.join(config.storage, config.name)
    return Job(config, home, list_data(config.data), settings_of(config), console)


def _end_if_judged(job: Job, state: State) -> None:
    before = state.of_listing(job.listing, job.settings)
    if before is not None and storage.exists(champion_uri(job.home)):  # who removes it wants another one
        raise NothingToDo(f"data and configuration are those of {before.run} ({_words(before)}): nothing to do")


def _retrain(job: Job, state: State, held: Lease) -> Record:
    started = time.monotonic()
    champion = read_champion(job.home)
    if champion is not None:
        check_export(champion.champion)  # before anything is spent
    run_uri, listing, cause = _trained(job, state, champion, held)
    run = load_run(run_uri)
    with hold_run(run_uri, "tlray retrain"):
        record = _judged(job, run, cause, time.monotonic() - started)
    held.check()
    number = _promoted(job, record)
    report_uri = _reported(job, record, number)
    judgement = Judgement(
        listing=listing,
        fingerprint=run.manifest.fingerprint,
        settings=job.settings,
        run=run_uri,
        verdict=record.outcome,
        champion=number,
    )
    _tell(job, record, number, report_uri)  # before the end is written down: rather twice than never
    save_state(job.home, load_state(job.home).with_judgement(judgement))
    return record


def _trained(job: Job, state: State, champion: Held | None, held: Lease) -> tuple[str, str, str]:
    """(run folder of the finished sweep, listing of the data that it is about, what had changed)."""
    pending = state.pending
    from tlray.workflows.run import resume, run

    if pending is not None and _goes_on(job, pending):
        job.say(f"going on with the interrupted retraining in {pending.run}")
        if not storage.exists(storage.join(pending.run, "DONE")):
            resume(pending.run, job.console)
        return pending.run, pending.listing, "an interrupted retraining went on"
    manifest = _manifest(job, state, champion)
    cause = _cause(job, state, champion, manifest)
    job.say(f"retraining: {cause}")
    run_uri = new_run_uri(job.config)
    held.check()
    pending = Pending(listing=job.listing, settings=job.settings, run=run_uri)
    save_state(job.home, load_state(job.home).with_pending(pending))
    job.say(f"run folder: {run_uri}")
    run(search_config(job.config, champion), run_uri, job.console, manifest)
    return run_uri, job.listing, cause


def _goes_on(job: Job, pending: Pending) -> bool:
    """Whether an interrupted run is still worth finishing: the same settings, and none of its images gone or changed.

    Images that came since are for the next retraining: with data that grow all the time, an interrupted one would
    otherwise never be finished.
    """
    if pending.settings != job.settings or not storage.exists(storage.join(pending.run, FORMAT)):
        return False
    return pending.listing == job.listing or all_still_there(load_manifest(pending.run), job.config.data)


def _manifest(job: Job, state: State, champion: Held | None) -> Manifest:
    """The images of now; NothingToDo, remembered for the next time, when they are those of an earlier judgement."""
    from tlray.distributed.cluster import connect
    from tlray.distributed.manifest_pass import make_manifest_on_cluster

    last = state.last.run if state.last is not None else champion.champion.run if champion is not None else None
    connect()
    manifest = make_manifest_on_cluster(
        job.config, last, lambda done, total: job.say(f"prepared: {done} of {total} images")
    )
    known = state.of_contents(manifest.fingerprint, job.settings) or _by_hand(state, champion, manifest, job)
    if known is None or champion is None:
        return manifest
    save_state(job.home, state.with_judgement(known.model_copy(update={"listing": job.listing, "time": time.time()})))
    raise NothingToDo(
        f"the images are those of {known.run} ({_words(known)}), under other names or dates: nothing to do"
    )


def _by_hand(state: State, champion: Held | None, manifest: Manifest, job: Job) -> Judgement | None:
    """A champion that a person promoted stands for its images with whatever settings are found the first time."""
    if champion is None or champion.champion.run is None or champion.champion.fingerprint != manifest.fingerprint:
        return None
    if any(one.run == champion.champion.run for one in state.judged):
        return None  # then its settings are known
    return Judgement(
        listing=job.listing,
        fingerprint=manifest.fingerprint,
        settings=job.settings,
        run=champion.champion.run,
        verdict="promoted",
        champion=champion.champion.number,
    )


def _cause(job: Job, state: State, champion: Held | None, manifest: Manifest) -> str:
    """Why there is something to do, for people."""
    last = state.last
    if champion is None:
        return "there is no champion yet" if last is None else "there is no champion any more"
    if last is None:
        return "the images are not those of the champion"
    return _changes(job, last, "the images have changed" if last.fingerprint != manifest.fingerprint else None)


def _changes(job: Job, last: Judgement, of_images: str | None) -> str:
    changes = [] if of_images is None else [of_images]
    if last.settings != job.settings:
        changes.append(f"the configuration has changed: {differing(last.settings, job.settings)}")
    return "; ".join(changes)


def _judged(job: Job, run: "Run", cause: str, seconds: float) -> Record:
    """The record of a finished sweep: as it stands in the run folder, if it is about the champion of now, and the
    challenger still the model that was judged."""
    champion = read_champion(job.home)
    now = champion.champion if champion is not None else None
    record = load_record(run.uri)
    judged = record is not None and (
        _number(record.champion) == _number(now) or (now is not None and now.run == run.uri)
    )
    if record is not None and judged and problem_of(record.challenger) is None:
        return record
    from tlray.workflows.retrain.duel import make_record

    record = make_record(job.config, run, now, cause, seconds)
    save_record(record)
    return record


def _promoted(job: Job, record: Record) -> int:
    """Carry the verdict out, unless that was done before a kill -> the number of the champion there is then."""
    held = read_champion(job.home)
    if held is not None and held.champion.run == record.run:
        return held.champion.number
    if not record.promoted:
        assert held is not None, "nobody is refused without a champion"
        return held.champion.number
    if _number(record.champion) != (held.champion.number if held is not None else None):
        raise TlrayError(
            f"{job.home}: the champion has been replaced while the challenger was judged; the same retraining again "
            "judges it against the new one"
        )
    return promote(job.home, record.challenger, held, by="retrain", reason="; ".join(record.reasons)).number


def _reported(job: Job, record: Record, number: int) -> str:
    from tlray.workflows.retrain.report import summary_line, write_reports

    report_uri = write_reports(record, number)
    job.say(summary_line(record, number))
    job.say(f"report: {report_uri}")
    return report_uri


def _tell(job: Job, record: Record, number: int, report_uri: str) -> None:
    url = job.config.retrain.webhook or os.environ.get(WEBHOOK)
    if not url:
        return
    problem = post(url, message(record, number, report_uri), timeout=job.config.retrain.webhook_timeout)
    if problem is not None:
        job.say(f"warning: {problem}; the outcome stands")


def _number(champion: Champion | None) -> int | None:
    return champion.number if champion is not None else None


def _words(judgement: Judgement) -> str:
    what = {"first": "the first champion", "promoted": "promoted", "refused": "refused"}[judgement.verdict]
    return f"{what}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime(judgement.time))} UTC"
