"""Bundles without a model in them, and leaderboards for bundles without a run."""

import hashlib
import json
from typing import Any

from small_bundle import METRICS

from tlray import storage
from tlray.runs.bundle_sums import CHECKSUMS, CONFIG, FILES
from tlray.runs.results import Leaderboard, LeaderboardRow
from tlray.storage.sealed import write_document


def fake_bundle(uri: str, trial_id: str = "001-resnet50-full", checkpoint_sha256: str | None = None) -> None:
    """Whole by its checksums, and of this trial."""
    contents = dict.fromkeys(FILES, b"not a model")
    contents[CONFIG] = json.dumps({"trial_id": trial_id, "checkpoint_sha256": checkpoint_sha256}).encode()
    for name, data in contents.items():
        storage.write_bytes(f"{uri}/{name}", data)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items())]
    storage.write_text(f"{uri}/{CHECKSUMS}", "".join(lines))


def write_board(run_uri: str, **fields: Any) -> None:
    """A leaderboard.json whose only row is the small bundle's, but for `fields`."""
    row: dict[str, Any] = {
        "backbone": "timm/test_resnet",
        "weights": "none",
        "strategy": "full",
        "params": {},
        "status": "completed",
        **METRICS,
        **fields,
    }
    board = Leaderboard(rows=(LeaderboardRow(**row),), num_test_images=60, no_gain_reason=None, seed=0)
    write_document(f"{run_uri}/leaderboard.json", board.model_dump(mode="json"))
