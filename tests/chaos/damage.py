"""One file of a run folder, or of the stores beside it, flipped in one bit, cut short, or gone."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.draw import pick

FILE_KINDS = (  # (kind, path below the storage)
    ("format", r"/format$"),
    ("config", r"/config\.yaml$"),
    ("manifest", r"/manifest\.parquet$"),
    ("plan", r"/plan\.json$"),
    ("trial", r"/trials/[^/]+/trial\.json$"),
    ("progress", r"/trials/[^/]+/progress.*"),
    ("history", r"/trials/[^/]+/history.*"),
    ("checkpoint", r"/(trials|groups)/[^/]+/.*\.safetensors$"),
    ("group", r"/groups/[^/]+/.*"),
    ("result", r"/trials/[^/]+/result\.json$"),
    ("predictions", r"/trials/[^/]+/(test|val)_predictions\.parquet$"),
    ("results", r"/results\.jsonl$"),
    ("leaderboard", r"/leaderboard\.json$"),
    ("budget", r"/budget\.json$"),
    ("export", r"/exports/[^/]+/.*"),
    ("report", r"/report\.html$"),
    ("DONE", r"/DONE$"),
    ("activation shard", r"^activations/.*/shards/"),
    ("activation index", r"^activations/.*/(index/|spec|used)"),
    ("prepared shard", r"^images/.*/shards/"),
    ("prepared index", r"^images/"),
    ("other", r""),
)
HOW = ("flip", "cut", "missing")


@dataclass(frozen=True)
class Damage:
    """`before`: the file's bytes, to put it back."""

    kind: str
    name: str  # path below the storage
    how: str
    before: bytes

    @property
    def trial(self) -> str | None:
        """The trial whose own file it is: training that again is no loss."""
        found = re.search(r"/(?:trials|groups)/([^/]+)/", self.name)
        return found.group(1) if found else None

    @property
    def words(self) -> str:
        return f"{self.how} {self.kind}: {self.name}"


def kind_of(name: str) -> str:
    return next(kind for kind, pattern in FILE_KINDS if re.search(pattern, name))


def damage_one(storage: Path, names: Iterable[str], how: str, rng: random.Random) -> Damage:
    """A file of a kind that is drawn first, so that a run's many checkpoints do not hide its one manifest."""
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if not name.rpartition("/")[2].startswith("."):  # a temporary file, which nobody reads
            by_kind[kind_of(name)].append(name)
    kind = pick(rng, sorted(by_kind))
    name = pick(rng, by_kind[kind])
    path = storage / name
    before = path.read_bytes()
    if how == "missing" or not before:
        path.unlink()
    elif how == "cut":
        path.write_bytes(before[: rng.randrange(len(before))])
    else:
        place = rng.randrange(len(before))
        path.write_bytes(before[:place] + bytes([before[place] ^ 1 << rng.randrange(8)]) + before[place + 1 :])
    return Damage(kind, name, how, before)


def repair(storage: Path, damage: Damage) -> None:
    (storage / damage.name).parent.mkdir(parents=True, exist_ok=True)
    (storage / damage.name).write_bytes(damage.before)
