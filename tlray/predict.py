"""Classify images and score a model on labelled ones: what `tlray predict` and `tlray evaluate` call.

    for prediction in predict("runs/birds/.../exports/1-resnet50", ["photos/", "s3://bucket/new/*.jpg"]): ...
    evaluation = evaluate("torchvision/mobilenet_v2", "labelled/")

The model is an export bundle, a run folder (its best export), a champion.json or a backbone's id (its own ImageNet
labels). Images that
cannot be read do not stop anything: they are predictions with an error, and `bad` of an evaluation.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

import torch

from tlray import storage
from tlray.backbone import load_classifier
from tlray.champion import FILE as CHAMPION
from tlray.champion import load_champion
from tlray.data.class_names import ClassNameError, matched
from tlray.data.inputs import expand, files_below, is_hidden
from tlray.data.sources.layout import folder_layout
from tlray.errors import DataError, InputError, nearest
from tlray.export.files import CHECKSUMS
from tlray.export.model import Model, Prediction, load
from tlray.results import Evaluation, UnreadableImage
from tlray.training.metrics import ClassificationSums

LOGITS_PER_UPDATE = 256
SCORED_FIRST = ("test", "val", "train")  # of the splits in a folder


def predict(
    model_ref: str,
    inputs: Sequence[str],
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
) -> Iterator[Prediction]:
    """Predictions in the order of the inputs, while they are computed.

    `inputs`: files, patterns (`*`, `?`, `[...]`, `**`), folders and s3:// prefixes with everything below them.
    `weights` is for a backbone's id: pretrained, or the location of a weights file. `device` is by default the first
    GPU, or the CPU. InputError, before the first prediction: no such model, or an input that is not there.
    """
    uris = list_inputs(inputs)
    model = open_model(model_ref, weights=weights, device=device, batch_size=batch_size, num_threads=num_threads)
    return model.stream(uris)


def evaluate(
    model_ref: str,
    data: str,
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
) -> Evaluation:
    """Scores on `data`, a folder or s3:// prefix with one sub-folder of images per class of the model.

    DataError: a sub-folder that is no class of the model, no images, or none that can be read.
    """
    model = open_model(model_ref, weights=weights, device=device, batch_size=batch_size, num_threads=num_threads)
    labels, note = _labelled_images(data, model.classes)
    sums = ClassificationSums(len(model.classes))
    bad: list[UnreadableImage] = []
    logits: list[torch.Tensor] = []
    truth: list[int] = []
    for scored in model.score(labels):
        if scored.logits is None:
            bad.append(UnreadableImage(uri=scored.image, reason=scored.error or ""))
            continue
        logits.append(scored.logits)
        truth.append(labels[scored.image])
        if len(logits) == LOGITS_PER_UPDATE:
            sums.update(torch.stack(logits), torch.tensor(truth))
            logits, truth = [], []
    if logits:
        sums.update(torch.stack(logits), torch.tensor(truth))
    if len(bad) == len(labels):
        raise DataError(f"{data}: none of the {len(bad)} images can be read, for example {bad[0].uri}: {bad[0].reason}")
    return _evaluation(model.classes, sums, bad, note)


def open_model(
    model_ref: str,
    *,
    weights: str = "pretrained",
    device: str | None = None,
    batch_size: int = 32,
    num_threads: int = 8,
) -> Model:
    """The model that `model_ref` means: an export bundle, a run's best export, the champion that a champion.json
    names, or a backbone's own classifier."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    location = storage.absolute(model_ref)
    bundle = _find_bundle(location)
    if bundle is not None:
        if weights != "pretrained":
            raise InputError(f"weights {weights!r}: {model_ref} brings its own; weights are for a backbone's id")
        return load(bundle, device=device, batch_size=batch_size, num_threads=num_threads)
    if storage.is_remote(model_ref) or os.path.exists(location) or model_ref.startswith(("/", ".", "~")):
        raise _no_export(model_ref)
    module, preprocessing, classes = load_classifier(model_ref, weights)
    return Model(module, classes, preprocessing, device=device, batch_size=batch_size, num_threads=num_threads)


def list_inputs(inputs: Iterable[str]) -> list[str]:
    """Every image that `inputs` name, in order, folders and patterns sorted; DataError for one that names nothing."""
    return [info.uri for given in inputs for info in expand(given)]


def find_export(model_ref: str) -> str:
    """Where the export bundle lies that `model_ref` means; DataError for what is none and has none."""
    bundle = _find_bundle(storage.absolute(model_ref))
    if bundle is None:
        raise _no_export(model_ref)
    return bundle


def _no_export(model_ref: str) -> DataError:
    return DataError(f"{model_ref} is neither an export bundle (it has no {CHECKSUMS}) nor a run folder with exports")


def _find_bundle(location: str) -> str | None:
    """`location` itself, the one that a champion.json names, or the first in rank below its exports/; else None."""
    if storage.exists(storage.join(location, CHECKSUMS)):
        return location
    if location.endswith(f"/{CHAMPION}"):
        return load_champion(location).export
    exports = storage.join(location, "exports")
    try:
        names = [
            path.split("/")[0] for _, path in files_below(exports) if path.count("/") == 1 and path.endswith(CHECKSUMS)
        ]
    except storage.NotFoundError:
        return None
    ranked = [name for name in names if name.partition("-")[0].isdigit()]
    return storage.join(exports, min(ranked, key=lambda name: int(name.partition("-")[0]))) if ranked else None


def _labelled_images(data: str, classes: Sequence[str]) -> tuple[dict[str, int], str]:
    """(location -> label of every file in a class folder, how its folders were understood).

    Hidden files, and those outside of class folders, are none. Of splits the test split is taken, else val, else train.
    """
    location = storage.absolute(data)
    layout = folder_layout("data", location)
    there = set(layout.splits.values())
    chosen = next((split for split in SCORED_FIRST if split in there), None)
    note = "" if chosen is None else f"{data} is {layout.description}; {chosen} is scored"
    labels: dict[str, int] = {}
    for info, path in files_below(location):
        split, folder = layout.place_of(path)
        if folder and not is_hidden(path) and (chosen is None or split == chosen):
            labels[info.uri] = classes.index(_class_of(data, folder, classes))
    if not labels:
        raise DataError(f"{data} holds no class folders with images; expected CLASS/image.jpg")
    return labels, note


def _class_of(data: str, folder: str, classes: Sequence[str]) -> str:
    """The class of the model that a folder's name means, in whatever spelling."""
    try:
        name = matched(folder, classes)
    except ClassNameError as error:
        raise DataError(f"{data}: the folder {folder!r}: {error}") from None
    if name is None:
        near = "".join(f"; did you mean {other!r}?" for other in nearest(folder, classes))
        raise DataError(f"{data}: the folder {folder!r} is none of the model's {len(classes)} classes{near}")
    return name


def _evaluation(
    classes: tuple[str, ...], sums: ClassificationSums, bad: Sequence[UnreadableImage], note: str
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
        notes=(note,) if note else (),
    )
