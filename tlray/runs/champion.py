"""The champion of a configuration: which export is in use, since when, and what was in use before. No torch here.

    champion = load_champion("s3://bucket/runs/birds/champion.json")       # or the folder that it lies in
    tlray.load(champion.export)

<storage>/<name>/champion.json            the champion; replaced by compare and swap, whole or not at all
<storage>/<name>/champions/0007.json      every champion there ever was, by number; never changed

champion.json is the truth. A champion is written to the history when it comes and, where a kill came in between, before
it is replaced: none that was ever in use is missing there.
"""

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tlray import storage
from tlray.config import WarmStart
from tlray.errors import DataError, InputError, StorageError, TlrayError
from tlray.runs.bundle_sums import CHECKSUMS, CONFIG, check_whole, read_checksums, read_verified
from tlray.storage.locations import CHAMPION as FILE
from tlray.storage.sealed import parse_document, sealed

HISTORY = "champions"
FORMAT_VERSION = 2  # 1 had no checksum
_REMEDY = (
    f"restore it from {HISTORY}/ beside it or from another copy, or, where an earlier version of tlray wrote it, "
    "move it away and choose the champion again with `tlray promote EXPORT`"
)


class ChampionChanged(TlrayError):
    """Somebody else has promoted another one meanwhile."""


class Candidate(BaseModel):
    """A trained model that could be the champion."""

    model_config = ConfigDict(frozen=True)

    export: str  # location of the bundle
    run: str | None  # run folder; None for a bundle that lies elsewhere
    trial_id: str
    backbone: str
    strategy: str
    params: dict[str, Any]  # the recipe
    classes: tuple[str, ...]
    metrics: dict[str, float | None]  # accuracies and gain as its own run has measured them, fractions
    fingerprint: str | None  # of the run's images: Manifest.fingerprint
    start: WarmStart | None  # the trial in full, for the next search to begin with
    checkpoint_sha256: str | None = None  # of the weights; a bundle of others is another model


class Champion(Candidate):
    """The one that is in use."""

    format_version: int = FORMAT_VERSION
    number: int  # 1 for the first; one more with every promotion, by hand and back too
    promoted: float  # seconds since 1970
    by: Literal["retrain", "hand", "rollback"]
    reason: str  # for people
    previous: int | None  # whom a rollback brings back
    restored: int | None = None  # the number that it had before, where a rollback has brought it back


@dataclass(frozen=True)
class Held:
    """A champion with the very bytes that were read, which a promotion compares with."""

    champion: Champion
    data: bytes


def champion_uri(home: str) -> str:
    """Where the champion of the run folders below `home`, `<storage>/<name>`, is named."""
    return storage.join(home, FILE)


def load_champion(uri: str) -> Champion:
    """The champion named by a champion.json, or by the folder that holds one; StorageError where there is none."""
    location = storage.absolute(uri)
    home = location.rpartition("/")[0] if location.endswith(f"/{FILE}") else location
    held = read_champion(home)
    if held is None:
        raise storage.NotFoundError(
            f"{champion_uri(home)} does not exist: `tlray retrain CONFIG` or `tlray promote RUN` makes a champion"
        )
    return held.champion


def read_champion(home: str) -> Held | None:
    """The champion as it is now; None before the first one."""
    try:
        data = storage.read_bytes(champion_uri(home))
    except storage.NotFoundError:
        return None
    return Held(_parse(data, champion_uri(home)), data)


def promote(
    home: str,
    candidate: Candidate,
    held: Held | None,
    *,
    by: Literal["retrain", "hand", "rollback"],
    reason: str,
    restores: Champion | None = None,
) -> Champion:
    """Make `candidate` the champion in the place of `held`; ChampionChanged when that one is it no more.

    `restores`: the earlier champion that a rollback brings back.
    """
    champion = Champion(
        **{name: getattr(candidate, name) for name in Candidate.model_fields},
        number=1 + (held.champion.number if held is not None else _last_number(home)),
        promoted=time.time(),
        by=by,
        reason=reason,
        previous=restores.previous if restores is not None else held.champion.number if held is not None else None,
        restored=restores.number if restores is not None else None,
    )
    data = _text(champion)
    uri = champion_uri(home)
    if held is not None:
        _remember(home, held.champion)
    done = storage.create_exclusive(uri, data) if held is None else storage.replace(uri, held.data, data)
    if not done:
        raise ChampionChanged(f"{uri} was changed by somebody else meanwhile; it stays as it is: look at it, try again")
    _remember(home, champion)
    return champion


def rollback(home: str) -> Champion:
    """Bring back the champion before the present one; again, the one before that. InputError where there is none."""
    held = read_champion(home)
    if held is None:
        raise InputError(f"{champion_uri(home)} does not exist: there is nothing to roll back")
    now = held.champion
    if now.previous is None:
        raise InputError(f"{champion_uri(home)}: champion {now.number} is the first; there is none to go back to")
    earlier = next((one for one in history(home) if one.number == now.previous), None)
    if earlier is None:
        raise StorageError(f"{_entry(home, now.previous)} is gone: `tlray promote EXPORT` chooses a champion by hand")
    check_export(earlier)
    reason = f"champion {earlier.number} brought back in the place of {now.number}"
    return promote(home, earlier, held, by="rollback", reason=reason, restores=earlier)


def history(home: str) -> tuple[Champion, ...]:
    """Every champion there was, the present one last; none before the first."""
    try:
        uris = [file.uri for file in storage.list_files(storage.join(home, HISTORY))]
    except storage.NotFoundError:
        uris = []
    kept = [_parse(storage.read_bytes(uri), uri) for uri in uris if _is_entry(uri)]
    champions = {champion.number: champion for champion in kept}
    held = read_champion(home)
    if held is not None:
        champions[held.champion.number] = held.champion
    return tuple(champions[number] for number in sorted(champions))


def check_export(champion: Champion) -> None:
    """StorageError when the champion's bundle is no longer there, is damaged, or is of another model."""
    problem = problem_of(champion)
    if problem is not None:
        raise StorageError(
            f"{champion.export}, the export of champion {champion.number}, {problem}: put it back, or choose another "
            "one with `tlray promote EXPORT`"
        )


def problem_of(candidate: Candidate) -> str | None:
    """What is wrong with a candidate's bundle: every file is read. None where it is as it was when it was chosen."""
    if not storage.exists(storage.join(candidate.export, CHECKSUMS)):
        return "is gone"
    try:
        check_whole(candidate.export)
        config = json.loads(read_verified(candidate.export, CONFIG, read_checksums(candidate.export)))
    except DataError as error:
        return f"is damaged ({error})"
    if candidate.checkpoint_sha256 not in (None, config.get("checkpoint_sha256")):
        return f"holds another model now, of {config.get('trial_id')}"
    return None


def _last_number(home: str) -> int:
    """Where somebody has removed champion.json, numbers go on; 0 before the first champion."""
    return max((champion.number for champion in history(home)), default=0)


def _remember(home: str, champion: Champion) -> None:
    storage.create_exclusive(_entry(home, champion.number), _text(champion))


def _entry(home: str, number: int) -> str:
    return storage.join(home, HISTORY, f"{number:04d}.json")


def _is_entry(uri: str) -> bool:
    name, _, ending = uri.rpartition("/")[2].partition(".")
    return ending == "json" and name.isdecimal()


def _text(champion: Champion) -> bytes:
    return sealed(champion.model_dump(mode="json"), indent=1).encode()


def _parse(data: bytes, uri: str) -> Champion:
    document = parse_document(data, uri, _REMEDY)
    found = document.get("format_version")
    if found != FORMAT_VERSION:
        raise StorageError(f"{uri} has format_version {found}, this tlray reads {FORMAT_VERSION}")
    try:
        return Champion.model_validate(document)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StorageError(f"{uri} is not a champion that tlray wrote: {field}: {error.errors()[0]['msg']}") from None
