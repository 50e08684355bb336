"""Materialise what a frozen prefix computes, or compute it again whenever it is read? Decided from measured numbers.

    sources = plan_sources(config, manifest, backbone, trials, store, speed, num_threads=2)

For each cut of a backbone, with an image's draw as the unit and D draws, R reads, b bytes:

    recompute    R x (decode + prefix)
    materialise  (D - stored) x (decode + prefix + b x write) + D x b x fetch + R x b x gather

decode (with the transform) and prefix are measured on images of the run, write and fetch by a round trip to the store,
gather from memory. The cheaper way is taken unless `activations.materialise` says otherwise, they are no function of
the image alone, or there is no room for them: then those stay that save most for their size.
"""

import dataclasses
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from tlray.activations.compute import BATCH_SIZE
from tlray.activations.keys import ActivationKey
from tlray.activations.location import Room, Speed
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.activations.stored import count_stored, wanted_images
from tlray.config import DataConfig, RunConfig, TrialConfig
from tlray.data.loader import load_draws
from tlray.data.manifest import Manifest
from tlray.data.read import image_reader, pixels_of
from tlray.data.transforms import normalise
from tlray.models.backbone import Backbone
from tlray.models.fold import folded
from tlray.models.freeze import blocks_by_epoch, frozen_keys, hash_tensors
from tlray.models.split import SPLIT_VERSION, Cut, SplitError, find_cut, frozen_prefix
from tlray.process.device import arithmetic, autocast, chosen_precision, fastest, given_device
from tlray.process.threads import torch_threads

NUM_MEASURED = 8  # images
DECODED_BY_A_THREAD = 4


@dataclass(frozen=True)
class _Demand:
    """What makes trials read the same activations."""

    num_frozen: int
    augmentation: str
    views: int
    updates_statistics: bool  # freeze_bn: false


@dataclass
class _Readers:
    trials: list[str] = dataclasses.field(default_factory=list)
    num_reads: int = 0
    with_test: bool = False
    solved: bool = False  # a linear probe among them is


def plan_sources(
    config: RunConfig,
    manifest: Manifest,
    backbone: Backbone,
    trials: Sequence[TrialConfig],
    store: ActivationStore,
    speed: Speed,
    *,
    num_threads: int,
) -> list[ActivationSource]:
    """A source for each cut that `trials`, all of this backbone, hold frozen for an epoch or more.

    `num_threads`: of a task of the activation pass, with which decoding and prefixes are measured.
    """
    demands = _demands(manifest, backbone, trials)
    if not demands:
        return []
    decode_seconds, images = _measure_decode(manifest, backbone, config.data, num_threads)
    prefix_seconds: dict[int, float] = {}
    sources = []
    for demand, readers in sorted(demands.items(), key=lambda item: -item[0].num_frozen):
        cut, problem = _cut_or_reason(backbone, demand)
        if cut is not None and demand.num_frozen not in prefix_seconds:
            with torch_threads(num_threads):
                prefix_seconds[demand.num_frozen] = _measure_prefix(backbone, cut, images, config)
        sources.append(
            _decide(
                config,
                manifest,
                backbone,
                trials[0],
                demand,
                readers,
                cut,
                problem,
                (decode_seconds, prefix_seconds.get(demand.num_frozen, 0.0)),
                store,
                speed,
            )
        )
    return sources


def _demands(manifest: Manifest, backbone: Backbone, trials: Iterable[TrialConfig]) -> dict[_Demand, _Readers]:
    num = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    demands: dict[_Demand, _Readers] = defaultdict(_Readers)
    for trial in trials:
        recipe = trial.recipe
        plain = recipe.augmentation == "none" or recipe.views == 1
        blocks = blocks_by_epoch(trial.strategy, backbone, trial.epochs)
        num_blocks = max(1, len(backbone.blocks))
        for trainable, epochs in Counter(blocks).items():
            if trainable >= num_blocks:
                continue
            demand = _Demand(
                num_frozen=len(backbone.blocks) - trainable,
                augmentation="none" if plain else recipe.augmentation,
                views=1 if plain else recipe.views,
                updates_statistics=not recipe.freeze_bn,
            )
            readers = demands[demand]
            readers.trials.append(trial.trial_id)
            readers.solved |= trial.is_solved
            readers.num_reads += epochs * (num["train"] + num["val"])
            if trainable == max(blocks):
                readers.with_test = True
                readers.num_reads += num["test"]
    return dict(demands)


def _cut_or_reason(backbone: Backbone, demand: _Demand) -> tuple[Cut | None, str]:
    """Where to cut, or why the activations there cannot be kept."""
    if demand.updates_statistics:
        return None, "freeze_bn: false, the BatchNorm statistics of frozen blocks change as they train"
    try:
        cut = find_cut(backbone, demand.num_frozen)
    except SplitError as error:
        return None, f"cannot be split: {error}"
    if demand.views == 0:
        return cut, "views: 0, every epoch draws its augmentation anew"
    return cut, ""


def _decide(
    config: RunConfig,
    manifest: Manifest,
    backbone: Backbone,
    trial: TrialConfig,
    demand: _Demand,
    readers: _Readers,
    cut: Cut | None,
    problem: str,
    seconds: tuple[float, float],
    store: ActivationStore,
    speed: Speed,
) -> ActivationSource:
    """Compare the two ways; `problem` says why there is only one."""
    keys = _keys(config, backbone, demand, trial) if cut is not None and not problem else []
    itemsize = 2 if config.activations.dtype == "float16" else 4
    bytes_per_image = cut.num_elements * itemsize if cut is not None else 0
    wanted = [wanted_images(manifest, view, readers.with_test) for view in range(demand.views)] if keys else []
    num_draws = sum(len(ids) for ids in wanted)
    num_stored = count_stored(keys, wanted, store)
    decode, prefix = seconds
    recompute = readers.num_reads * (decode + prefix)
    materialise = (num_draws - num_stored) * (decode + prefix + bytes_per_image * speed.write)
    materialise += num_draws * bytes_per_image * speed.fetch + readers.num_reads * bytes_per_image * speed.gather
    choice = config.activations.materialise
    if problem:
        wins, reason = False, problem
    elif choice != "auto":
        wins, reason = choice == "always", f"activations.materialise: {choice}"
    elif readers.solved:  # as often as they are read, once, it costs the same: but later runs and a resume find them
        wins, reason = True, "a solved probe reads them, and later runs"
    elif materialise < recompute:
        wins, reason = True, f"{recompute / max(materialise, 1e-9):.1f}x cheaper than recomputing"
    else:
        wins, reason = False, f"recomputing is {materialise / max(recompute, 1e-9):.1f}x cheaper"
    return ActivationSource(
        backbone=trial.backbone,
        seed=trial.seed,
        num_frozen=demand.num_frozen,
        num_blocks=len(backbone.blocks),
        last_block=backbone.blocks[demand.num_frozen - 1].name if demand.num_frozen else "",
        augmentation=demand.augmentation,
        views=demand.views,
        trials=tuple(readers.trials),
        with_test=readers.with_test,
        bytes_per_image=bytes_per_image,
        num_draws=num_draws,
        num_stored=num_stored,
        num_reads=readers.num_reads,
        decode_seconds=decode,
        prefix_seconds=prefix,
        materialise_seconds=materialise,
        recompute_seconds=recompute,
        materialise=wins,
        reason=reason,
        keys=tuple(dataclasses.asdict(key) for key in keys),
    )


def within(sources: Sequence[ActivationSource], room: Room) -> list[ActivationSource]:
    """The sources with those recomputed that there is no room for, the least useful for their size first.

    What `activations.materialise: always` asks for stays: the run says that it does not fit.
    """
    total, added = 0, 0
    too_much: set[int] = set()
    for source in sorted((source for source in sources if source.materialise), key=_loss_per_byte):
        all_bytes, new_bytes = source.num_draws * source.bytes_per_image, source.bytes_to_add
        fits = total + all_bytes <= room.in_store and added + new_bytes <= room.on_disk
        if fits or source.reason.endswith("always"):
            total, added = total + all_bytes, added + new_bytes
        else:
            too_much.add(id(source))
    reason = f"no room: {room}"
    return [
        source.model_copy(update={"materialise": False, "reason": reason}) if id(source) in too_much else source
        for source in sources
    ]


def _loss_per_byte(source: ActivationSource) -> float:
    return (source.materialise_seconds - source.recompute_seconds) / max(1, source.num_draws * source.bytes_per_image)


def _keys(config: RunConfig, backbone: Backbone, demand: _Demand, trial: TrialConfig) -> list[ActivationKey]:
    trainable = len(backbone.blocks) - demand.num_frozen
    weights_hash = hash_tensors(backbone.model, frozen_keys(backbone, trainable))
    return [
        ActivationKey(
            backbone=backbone.id,
            options=json.dumps(trial.backbone.options, sort_keys=True),
            weights_hash=weights_hash,
            num_frozen=demand.num_frozen,
            preprocessing=json.dumps(backbone.preprocessing.to_dict(), sort_keys=True),
            augmentation=demand.augmentation if view > 0 else "none",
            view=view,
            dtype=config.activations.dtype,
            precision=chosen_precision(config.activations.precision, given_device(config.sweep.gpus_per_worker)),
            split_version=SPLIT_VERSION,
            pixels=pixels_of(config.data),
        )
        for view in range(demand.views)
    ]


def _measure_decode(
    manifest: Manifest, backbone: Backbone, data: DataConfig, num_threads: int
) -> tuple[float, list[torch.Tensor]]:
    """Seconds to read, decode and transform an image, and NUM_MEASURED images made ready (3, H, W) uint8."""
    read = image_reader(data)
    some = list(manifest.split("train")[: max(NUM_MEASURED, DECODED_BY_A_THREAD * num_threads)])
    started = time.perf_counter()
    images = list(load_draws(some, backbone.preprocessing, "none", 0, num_threads=num_threads, read=read))
    return (time.perf_counter() - started) / len(some), images[:NUM_MEASURED]


def _measure_prefix(backbone: Backbone, cut: Cut, images: list[torch.Tensor], config: RunConfig) -> float:
    """Seconds for one image through the frozen prefix, on the device that the activation pass would use here.

    Warm, and in a batch of the pass's own size on a GPU, of which eight images would use a small part.
    """
    device = given_device(config.sweep.gpus_per_worker)
    prefix = folded(frozen_prefix(backbone, [cut])).to(device)
    pixels = torch.stack(images).to(device)
    if device.type == "cuda":
        pixels = pixels.repeat(math.ceil(BATCH_SIZE["cuda"] / len(images)), 1, 1, 1)[: BATCH_SIZE["cuda"]]
    batch = normalise(pixels, backbone.preprocessing).contiguous(memory_format=torch.channels_last)
    precision = chosen_precision(config.activations.precision, device)
    with torch.inference_mode(), arithmetic(device, precision), autocast(device, precision):
        return fastest(lambda: prefix(batch), device) / len(batch)
