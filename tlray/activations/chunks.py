"""What is missing from the store, cut into pieces of work. No torch here: the driver of a cluster makes these lists.

chunks = list_chunks(sources, manifest, store, images_per_shard=512, num_workers=2)

A chunk is some images of one split with all draws and backbones that miss exactly these images: what an image costs to
read and decode is paid once for as many backbones as are computed together.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.config import BackboneConfig
from tlray.data.manifest import Manifest

SHARD_BYTES = 64 * 2**20  # of one cut; what a worker holds of it in memory
SMALLEST_CHUNK = 64  # images; smaller ones do not repay what a task costs
BACKBONES_AT_ONCE = 4  # models that a worker holds in memory


@dataclass(frozen=True)
class Wanted:
    """One backbone's part of a draw: the cuts that come out of its forward."""

    backbone: BackboneConfig
    seed: int
    keys: tuple[ActivationKey, ...]


@dataclass(frozen=True)
class Draw:
    """One draw of the chunk's images and all that is computed of it."""

    preprocessing: str  # JSON
    augmentation: str
    view: int
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True)
class Chunk:
    """Images and what to compute of them."""

    content_ids: tuple[str, ...]
    draws: tuple[Draw, ...]

    @property
    def num_forwards(self) -> int:
        """Images through a frozen prefix."""
        return len(self.content_ids) * sum(len(draw.wanted) for draw in self.draws)


@dataclass
class ChunkOutcome:
    """What one chunk came to."""

    num_forwards: int = 0  # images through a frozen prefix
    failures: dict[str, str] = field(default_factory=dict)  # backbone id -> why its activations could not be made


@dataclass(frozen=True)
class _Target:
    key: ActivationKey
    backbone: BackboneConfig
    seed: int
    bytes_per_image: int
    splits: tuple[str, ...]


def list_chunks(
    sources: Sequence[ActivationSource],
    manifest: Manifest,
    store: ActivationStore,
    *,
    images_per_shard: int,
    num_workers: int,
) -> list[Chunk]:
    """Everything that the materialised sources need and the store does not hold."""
    chunks = []
    targets = _targets(sources)
    backbones = list(dict.fromkeys((target.backbone.model_dump_json(), target.seed) for target in targets))
    for start in range(0, len(backbones), BACKBONES_AT_ONCE):
        together = backbones[start : start + BACKBONES_AT_ONCE]
        bundle = [target for target in targets if (target.backbone.model_dump_json(), target.seed) in together]
        for indices, ids in _missing_alike(bundle, manifest, store):
            wanted = [bundle[index] for index in indices]
            size = _chunk_size(wanted, len(ids), images_per_shard, num_workers)
            draws = _draws(wanted)
            chunks += [Chunk(tuple(ids[at : at + size]), draws) for at in range(0, len(ids), size)]
    return chunks


def _targets(sources: Sequence[ActivationSource]) -> list[_Target]:
    """One for each key; sources that share a draw at a cut (the evaluation's, say) share the target."""
    targets: dict[str, _Target] = {}
    for source in sources:
        if not source.materialise:
            continue
        for view, fields in enumerate(source.keys):
            key = ActivationKey(**fields)
            before = targets.get(key.digest)
            with_test = source.with_test or (before is not None and "test" in before.splits)
            splits = ("train",) if view > 0 else ("train", "val", "test") if with_test else ("train", "val")
            targets[key.digest] = _Target(key, source.backbone, source.seed, source.bytes_per_image, splits)
    return list(targets.values())


def _missing_alike(
    targets: Sequence[_Target], manifest: Manifest, store: ActivationStore
) -> list[tuple[tuple[int, ...], list[str]]]:
    """Images of one split that the same targets miss: (indices of the targets, content ids)."""
    found: list[tuple[tuple[int, ...], list[str]]] = []
    seen: set[tuple[int, str]] = set()  # the same image may stand in several splits
    for split in ("train", "val", "test"):
        ids = list(dict.fromkeys(image.content_id for image in manifest.images if image.split == split))
        missing_in: dict[str, list[int]] = defaultdict(list)
        for index, target in enumerate(targets):
            if split in target.splits:
                for content_id in store.missing(target.key, ids):
                    if (index, content_id) not in seen:
                        seen.add((index, content_id))
                        missing_in[content_id].append(index)
        groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for content_id in ids:
            if content_id in missing_in:
                groups[tuple(missing_in[content_id])].append(content_id)
        found += groups.items()
    return found


def _chunk_size(targets: Sequence[_Target], num_images: int, images_per_shard: int, num_workers: int) -> int:
    fits = SHARD_BYTES // max(target.bytes_per_image for target in targets)
    fair = max(SMALLEST_CHUNK, math.ceil(num_images / num_workers))
    return max(1, min(images_per_shard, fits, fair))


def _draws(targets: Sequence[_Target]) -> tuple[Draw, ...]:
    def alike(target: _Target) -> tuple[int, str, str]:
        return target.key.view, target.key.augmentation, target.key.preprocessing

    def of_backbone(target: _Target) -> tuple[str, int]:
        return target.backbone.model_dump_json(), target.seed

    draws = []
    for (view, augmentation, preprocessing), same_draw in groupby(sorted(targets, key=alike), key=alike):
        wanted = [
            Wanted(BackboneConfig.model_validate(json.loads(config)), seed, tuple(target.key for target in of_one))
            for (config, seed), of_one in groupby(sorted(same_draw, key=of_backbone), key=of_backbone)
        ]
        draws.append(Draw(preprocessing, augmentation, view, tuple(wanted)))
    return tuple(draws)
