"""The bundles of a run, `exports/<rank>-<backbone>`: which is of which trial, and how one takes another's place.

    uri = champion_bundle(run_uri)                    # of the leaderboard's best trial, or DataError
    publish(folder, uri)                              # a made bundle, in the place of whatever lies there

A bundle belongs to a trial and to the checkpoint whose weights it holds; both stand in its config.json. A folder on S3
cannot be replaced in one step, so a new bundle is first written whole beside the old one: at any moment, and after a
kill at any moment, a folder without SHA256SUMS is no bundle, and one with it is the old bundle or the new one.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlray import storage
from tlray.errors import DataError
from tlray.export.files import BundleConfig, read_bundle_config
from tlray.runs.board import LEADERBOARD, load_leaderboard
from tlray.runs.bundle_sums import CHECKSUMS, FILES, METRICS, check_whole, read_checksums, read_verified
from tlray.runs.refit import exported_checkpoint
from tlray.runs.results import LeaderboardRow
from tlray.runs.trials import read_recorded

FOLDER, ENSEMBLE = "exports", "ensemble"
NEW = ".new-"  # a bundle on its way to the place of another
REMEDY = "`tlray export RUN` writes it"


def champion_bundle(run_uri: str) -> str:
    """Where the bundle of the leaderboard's best trial beside the baseline lies; DataError where there is none."""
    board = storage.join(run_uri, LEADERBOARD)
    if not storage.exists(board):
        raise DataError(f"{run_uri} has no leaderboard.json that says which export is its best: `tlray report RUN`")
    champion = load_leaderboard(run_uri).champion
    if champion is None:
        raise DataError(f"{board} has no trial that could be exported: only the baseline, or nothing, has a score")
    return bundle_of(run_uri, champion)


def bundle_of(run_uri: str, row: LeaderboardRow) -> str:
    """Where the bundle of a row's trial lies; DataError where there is none, or another trial's in its place."""
    checkpoint = _recorded_checkpoint(run_uri, row.trial_id)
    found: list[str] = []
    for uri in _by_rank(bundles(run_uri)):
        try:
            config = read_config(uri)
        except DataError as error:
            found.append(str(error))
            continue
        if config.trial_id == row.trial_id and _is_checkpoint(config, checkpoint):
            return uri
        found.append(f"{uri} is of {config.trial_id}")
    what = "; ".join(found[:3]) or f"{storage.join(run_uri, FOLDER)} holds no bundle"
    raise DataError(f"{row.trial_id}, number {row.rank} of {run_uri}, has no export ({what}): {REMEDY}")


def bundles(run_uri: str) -> list[str]:
    """Every folder below exports/ that says it is whole, those that are on their way last."""
    folder = storage.join(run_uri, FOLDER)
    try:
        files = [file.uri for file in storage.list_files(folder)]
    except storage.NotFoundError:
        return []
    depth = folder.count("/") + 2
    return [uri.rpartition("/")[0] for uri in files if uri.endswith(f"/{CHECKSUMS}") and uri.count("/") == depth]


def read_config(uri: str) -> BundleConfig:
    """config.json of a bundle, with the trial that older bundles name in metrics.json alone."""
    sums = read_checksums(uri)
    config = read_bundle_config(uri, sums)
    if config.trial_id is not None or METRICS not in sums:
        return config
    return config.model_copy(update={"trial_id": json.loads(read_verified(uri, METRICS, sums)).get("trial_id")})


def is_current(
    uri: str, expected: Mapping[str, Any], checkpoint_sha256: str, classes: Sequence[str], tta: str = "none"
) -> bool:
    """Whether a bundle is whole, byte for byte, and says what the run says of its model now.

    `expected`: its metrics but for those of the export itself; `checkpoint_sha256`: as the trial has recorded it.
    """
    try:
        check_whole(uri)
        config = read_config(uri)
        metrics = json.loads(read_verified(uri, METRICS, read_checksums(uri)))
    except DataError:
        return False
    for measured_here in ("agreement", "view_difference", "tta"):
        metrics.pop(measured_here, None)
    found = (config.checkpoint_sha256, config.classes, config.tta)
    return found == (checkpoint_sha256, tuple(classes), tta) and metrics == expected


def publish(folder: Path, checksums: str, destination: str) -> None:
    """Write the bundle made in a local folder, in the place of what lies at `destination`."""
    if not _is_empty(destination):
        digest = hashlib.sha256(checksums.encode()).hexdigest()
        new = storage.join(destination.rpartition("/")[0], f"{NEW}{digest[:12]}")
        _write(folder, checksums, new)
        remove_files(destination)
        _write(folder, checksums, destination)
        remove_files(new)
    else:
        _write(folder, checksums, destination)


def remove_outdated(run_uri: str, rows: Sequence[LeaderboardRow], keep: Collection[str]) -> None:
    """Remove the bundles that are not of the trial whose rank they bear, and what killed exports have left.

    `keep`: bundles that stay in any case, such as the one that champion.json names.
    """
    by_rank = {row.rank: row for row in rows if row.rank}
    folder = storage.join(run_uri, FOLDER)
    try:
        names = {file.uri.removeprefix(f"{folder}/").partition("/")[0] for file in storage.list_files(folder)}
    except storage.NotFoundError:
        return
    for name in sorted(names):
        uri = storage.join(folder, name)
        ranked = re.match(r"(\d+)-", name)
        if uri in keep or (ranked is None and not name.startswith((NEW, ENSEMBLE))):
            continue
        row = by_rank.get(int(ranked[1])) if ranked is not None else None
        if row is None or not _is_of(uri, row, _recorded_checkpoint(run_uri, row.trial_id)):
            remove_files(uri)


def remove_files(uri: str) -> None:
    """Remove a bundle's files, SHA256SUMS first: from then on it is none. What else lies in the folder stays."""
    storage.delete(storage.join(uri, CHECKSUMS))
    ours = (CHECKSUMS, *FILES, "model.onnx.data")
    for file in _files(uri):
        name = file.removeprefix(f"{uri}/")
        if name in ours or any(name.startswith(f".{one}.") for one in ours):
            storage.delete(file)
    if not storage.is_remote(uri):
        _remove_folder(Path(uri))


def _is_of(uri: str, row: LeaderboardRow, checkpoint: str | None) -> bool:
    try:
        config = read_config(uri)
    except DataError:
        return False
    return config.trial_id == row.trial_id and _is_checkpoint(config, checkpoint)


def _is_checkpoint(config: BundleConfig, sha256: str | None) -> bool:
    return sha256 is None or config.checkpoint_sha256 in (None, sha256)


def _recorded_checkpoint(run_uri: str, trial_id: str) -> str | None:
    """The hash that the trial has written down; None where its folder is gone, and the trial's id has to do."""
    recorded = read_recorded(run_uri, trial_id)
    return exported_checkpoint(run_uri, recorded.result)[1] if recorded is not None else None


def _write(folder: Path, checksums: str, destination: str) -> None:
    storage.upload_folder(folder, destination)
    storage.write_text(storage.join(destination, CHECKSUMS), checksums)


def _is_empty(uri: str) -> bool:
    return next(iter(_files(uri)), None) is None


def _files(uri: str) -> list[str]:
    try:
        return [file.uri for file in storage.list_files(uri)]
    except storage.NotFoundError:
        return []


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:  # somebody keeps something of their own in it, or it is gone
        return


def _by_rank(uris: Sequence[str]) -> list[str]:
    """In the order of their ranks; what is on its way last, as the same bundle may lie in its own place already."""

    def rank(uri: str) -> tuple[float, str]:
        number = uri.rpartition("/")[2].partition("-")[0]
        return (float(number) if number.isdecimal() else float("inf")), uri

    return sorted(uris, key=rank)
