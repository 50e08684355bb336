"""The demo's images, and a tiny backbone pre-trained on another task than the one the demo is about.

The weights are an ordinary file that the configuration names as `weights:`, so the demo takes the same way as a run
on anybody's images. What is there already is not made again.
"""

from dataclasses import dataclass

from safetensors.torch import save

from tlray import storage
from tlray.config import BackboneConfig, DataConfig, Recipe, StrategyConfig, SyntheticConfig, TrialConfig
from tlray.data.manifest import make_manifest
from tlray.data.synthetic import make_dataset
from tlray.models.backbone import build_backbone
from tlray.process.scratch import temporary_folder
from tlray.training.checkpoint import TrialFolder
from tlray.training.loop import Feed, fit
from tlray.training.trial import manifest_images
from tlray.training.worker import local_worker

BACKBONE = BackboneConfig(id="timm/test_resnet", weights="none", input_size=64)
SOURCE_IMAGES = {"train": 120, "val": 10}  # per class
TARGET_IMAGES = {"train": 25, "val": 25, "test": 50}
PRETRAINING = Recipe(epochs=6, batch_size=32, lr=0.003, warmup_epochs=0.5, augmentation="light")


@dataclass(frozen=True)
class DemoData:
    """Locations of the target task's splits and of the backbone pre-trained on the source task."""

    train: str
    val: str
    test: str
    weights: str


def make_demo_data(synthetic: SyntheticConfig) -> DemoData:
    """Write images and weights below `synthetic.location` unless a marker says that they are all there."""
    location = storage.absolute(synthetic.location)
    target = storage.join(location, "target")
    weights = storage.join(location, "test_resnet.safetensors")
    if not storage.exists(weights):  # the last thing written
        make_dataset(target, task="target", images_per_class=TARGET_IMAGES, seed=synthetic.seed)
        source = storage.join(location, "source")
        make_dataset(source, task="source", images_per_class=SOURCE_IMAGES, seed=synthetic.seed)
        storage.write_bytes(weights, _pretrain(source, synthetic.seed))
    train, val, test = (storage.join(target, split) for split in ("train", "val", "test"))
    return DemoData(train=train, val=val, test=test, weights=weights)


def _pretrain(source: str, seed: int) -> bytes:
    """Train the tiny backbone on the source task -> a weights file with its preprocessing in the metadata."""
    val = storage.join(source, "val")
    # nothing is chosen by its score, so one set may be both
    data = DataConfig(train=storage.join(source, "train"), val=val, test=val, max_leaked_fraction=1)
    images = manifest_images(make_manifest(data), data)
    trial = TrialConfig(
        trial_id="pretraining",
        backbone=BACKBONE,
        strategy=StrategyConfig(strategy="scratch"),
        recipe=PRETRAINING,
        seed=seed,
    )
    worker = local_worker()
    backbone = build_backbone(BACKBONE, images.num_classes, seed=seed)
    streams = images.open_streams(backbone.preprocessing, trial.recipe, seed, worker)
    with temporary_folder("demo") as scratch:
        feed = Feed(streams, backbone.model)
        fit(backbone, lambda trainable_blocks: feed, trial, worker, TrialFolder(str(scratch)), lambda metrics: None)
    library, _, architecture = BACKBONE.id.partition("/")
    metadata = {
        "library": library,
        "arch": architecture,
        "input_size": str(BACKBONE.input_size),
        "mean": ",".join(str(value) for value in backbone.preprocessing.mean),
        "std": ",".join(str(value) for value in backbone.preprocessing.std),
    }
    return save({key: tensor.cpu().contiguous() for key, tensor in backbone.model.state_dict().items()}, metadata)
