"""Classify images and score a model on labelled ones: what `tlray predict` and `tlray evaluate` call.

    for prediction in predict("runs/birds/.../exports/1-resnet50", ["photos/", "s3://bucket/new/*.jpg"]): ...
    evaluation = evaluate("torchvision/mobilenet_v2", "labelled/")

The model is an export bundle, a run folder (its best export), a champion.json or a backbone's id (its own ImageNet
labels). Images that
cannot be read do not stop anything: they are predictions with an error, and `bad` of an evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from tlray import storage
from tlray.catalogue import is_library
from tlray.data.inputs import expand
from tlray.data.labelled import open_labelled
from tlray.errors import DataError, InputError
from tlray.export.model import Model, Prediction, load
from tlray.export.of_run import bundles, champion_bundle
from tlray.models.backbone import load_classifier
from tlray.models.combined import Flipped
from tlray.process.device import given_device
from tlray.runs.board import LEADERBOARD
from tlray.runs.champion import check_export, load_champion
from tlray.runs.results import Evaluation, UnreadableImage
from tlray.storage.locations import CHAMPION, CHECKSUMS, Location, describe_missing, locate
from tlray.training.metrics import ClassificationSums

LOGITS_PER_UPDATE = 256


def predict(
    model_ref: str,
    inputs: Sequence[str],
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
    tta: Literal["none", "flip"] = "none",
) -> Iterator[Prediction]:
    """Predictions in the order of the inputs, while they are computed.

    `inputs`: files, patterns (`*`, `?`, `[...]`, `**`), folders and s3:// prefixes with everything below them.
    `weights` is for a backbone's id: pretrained, or the location of a weights file. `device` is by default the first
    GPU, or the CPU. `tta="flip"` averages over an image and its mirror image, for twice the time. InputError, before
    the first prediction: no such model, or an input that is not there.
    """
    uris = list_inputs(inputs)
    model = open_model(
        model_ref, weights=weights, device=device, batch_size=batch_size, num_threads=num_threads, tta=tta
    )
    return model.stream(uris)


def evaluate(
    model_ref: str,
    data: str,
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
    tta: Literal["none", "flip"] = "none",
) -> Evaluation:
    """Scores on `data`: class folders, a table, a tar, Parquet or zip file, whatever a run trains on.

    DataError: a class that is none of the model's, no images, or none that can be read.
    """
    model = open_model(
        model_ref, weights=weights, device=device, batch_size=batch_size, num_threads=num_threads, tta=tta
    )
    labelled = open_labelled(data, model.classes)
    sums = ClassificationSums(len(model.classes))
    bad = [UnreadableImage(uri=entry.uri, reason=entry.reason) for entry in labelled.bad]
    logits: list[torch.Tensor] = []
    truth: list[int] = []
    scores = model.score(load for _, load in labelled.read())
    for entry, label, scored in zip(labelled.entries, labelled.labels, scores, strict=True):
        if scored.logits is None:
            bad.append(UnreadableImage(uri=entry.uri, reason=scored.error or ""))
            continue
        logits.append(scored.logits)
        truth.append(label)
        if len(logits) == LOGITS_PER_UPDATE:
            sums.update(torch.stack(logits), torch.tensor(truth))
            logits, truth = [], []
    if logits:
        sums.update(torch.stack(logits), torch.tensor(truth))
    if len(bad) == len(labelled.entries) + len(labelled.bad):
        raise DataError(f"{data}: none of the {len(bad)} images can be read, for example {bad[0].uri}: {bad[0].reason}")
    return _evaluation(model.classes, sums, bad, labelled.notes)


def open_model(
    model_ref: str,
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
    tta: Literal["none", "flip"] = "none",
) -> Model:
    """The model that `model_ref` means: an export bundle, a run's best export, the champion that a champion.json
    names, or a backbone's own classifier."""
    if device is None:
        device = given_device().type
    location = locate(model_ref)
    if location.kind not in ("missing", "pattern"):
        if weights != "pretrained":
            raise InputError(f"weights {weights!r}: {model_ref} brings its own; weights are for a backbone's id")
        bundle = _bundle_at(model_ref, location)
        return load(bundle, device=device, batch_size=batch_size, num_threads=num_threads, tta=tta)
    if storage.is_remote(model_ref) or model_ref.startswith(("/", ".", "~")):
        raise _missing_model(model_ref)
    if "/" in model_ref and not is_library(model_ref.partition("/")[0]):
        raise DataError(f"{_missing_model(model_ref)} (no library of backbones is called so either)")
    module, preprocessing, classes = load_classifier(model_ref, weights)
    module = Flipped(module) if tta == "flip" else module
    return Model(module, classes, preprocessing, device=device, batch_size=batch_size, num_threads=num_threads)


def list_inputs(inputs: Iterable[str]) -> list[str]:
    """Every image that `inputs` name, in order, folders and patterns sorted; DataError for one that names nothing."""
    return [info.uri for given in inputs for info in expand(given)]


def find_export(model_ref: str) -> str:
    """Where the export bundle lies that `model_ref` means; DataError for what is none and has none."""
    location = locate(model_ref)
    if location.kind in ("missing", "pattern"):
        raise _missing_model(model_ref)
    return _bundle_at(model_ref, location)


def _missing_model(model_ref: str) -> InputError:
    if storage.absolute(model_ref).endswith(f"/{CHAMPION}"):
        return storage.NotFoundError(
            f"{describe_missing(model_ref)}: `tlray retrain CONFIG` or `tlray promote RUN` makes a champion"
        )
    return DataError(describe_missing(model_ref))


def _bundle_at(model_ref: str, location: Location) -> str:
    """The bundle itself, the one that a champion.json names, or that of a run's best trial.

    DataError for a run whose exports are not of the trial that its leaderboard calls the best.
    """
    if location.kind == "bundle":
        return location.uri
    if location.kind == "champion":
        champion = load_champion(location.uri)
        check_export(champion)
        return champion.export
    if location.is_file or not _has_results(location.uri):
        what = location.words if location.is_file else f"{location.words} without exports, and holds no {CHECKSUMS}"
        raise DataError(f"{model_ref} is {what}: give an export bundle, a run folder with exports, or a champion.json")
    return champion_bundle(location.uri)


def _has_results(folder: str) -> bool:
    return storage.exists(storage.join(folder, LEADERBOARD)) or bool(bundles(folder))


def _evaluation(
    classes: tuple[str, ...], sums: ClassificationSums, bad: Sequence[UnreadableImage], notes: tuple[str, ...]
) -> Evaluation:
    scores = sums.result()
    confusion = tuple(tuple(int(count) for count in row) for row in sums.confusion.tolist())
    return Evaluation(
        classes=classes,
        num_images=scores.num_images,
        accuracy=scores.accuracy,
        top5_accuracy=scores.top5_accuracy,
        macro_f1=scores.macro_f1,
        loss=scores.loss,
        recall={
            name: row[i] / sum(row) if sum(row) else None
            for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
        },
        confusion=confusion,
        bad=tuple(bad),
        notes=notes,
    )
