"""What a trained model says of the validation and the test images, and the files that keep it.

    answers = {split: answers_of(backbone, feed, split, precision, worker) for split in ("val", "test")}
    scores, files = write_predictions(folder_uri, answers, images.content_ids)

trials/<id>/val_predictions.parquet and test_predictions.parquet: one row an image, in the same columns. Confidence
intervals, ensembles and temperatures are made from these files alone; no image is read again for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tlray import storage
from tlray.data.batch import Batch, Streams
from tlray.data.to_device import on_device
from tlray.models.backbone import Backbone
from tlray.runs.calibration import calibrated_loss
from tlray.runs.predictions import LOG_PROBABILITIES, MOST_KEPT, PREDICTED_SPLITS, PredictedSplit
from tlray.runs.trials import PREDICTION_FILES
from tlray.storage.sealed import write_checked
from tlray.training.inputs import model_inputs
from tlray.training.loop import Feed
from tlray.training.metrics import ClassificationSums, Scores
from tlray.training.step import eval_step
from tlray.training.worker import Worker


@dataclass(frozen=True)
class Answers:
    """Of one split, on the CPU: rows (N,) int64 of it, labels (N,) int64, logits (N, C) float32."""

    rows: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Judgement(Scores):
    """Scores on the test split, and what the choice among trials takes from the validation split."""

    num_val_images: int
    val_calibrated_loss: float | None  # nats per image


def split_batches(streams: Streams, split: PredictedSplit) -> Iterator[Batch]:
    return streams.val() if split == "val" else streams.test()


def answers_of(backbone: Backbone, feed: Feed, split: PredictedSplit, precision: str, worker: Worker) -> Answers:
    """The whole split through the model, in evaluation mode."""
    backbone.model.eval()
    rows, labels, logits = [], [], []
    with closing(on_device(split_batches(feed.streams, split), worker.device)) as batches:
        for batch in batches:
            inputs = model_inputs(batch, feed.streams, worker, precision)
            rows.append(batch.rows)
            labels.append(batch.labels)
            logits.append(eval_step(feed.model, inputs, precision=precision))
    return Answers(torch.cat(rows).cpu(), torch.cat(labels).cpu(), torch.cat(logits).cpu())


def write_predictions(
    folder_uri: str, answers: Mapping[PredictedSplit, Answers], content_ids: Mapping[PredictedSplit, Sequence[str]]
) -> tuple[Judgement, dict[str, str]]:
    """Write both files -> the trial's judgement, and the sha256 of each file by its name.

    `content_ids`: of a split's images, which the answers' rows index.
    """
    files = {}
    for split in PREDICTED_SPLITS:
        sink = pa.BufferOutputStream()
        pq.write_table(_table(answers[split], content_ids[split]), sink)
        name = PREDICTION_FILES[split]
        files[name] = write_checked(storage.join(folder_uri, name), sink.getvalue().to_pybytes())
    test = answers["test"]
    sums = ClassificationSums(test.logits.shape[1])
    sums.update(test.logits, test.labels)
    val = answers["val"]
    loss = calibrated_loss(val.logits.double().numpy(), val.labels.numpy())
    return Judgement(**vars(sums.result()), num_val_images=len(val.labels), val_calibrated_loss=loss), files


def _table(answers: Answers, content_ids: Sequence[str]) -> pa.Table:
    logs = torch.log_softmax(answers.logits.float(), dim=1)
    predicted = answers.logits.argmax(dim=1)
    columns = {
        "row": pa.array(answers.rows.numpy(), pa.int64()),
        "content_id": pa.array([content_ids[row] for row in answers.rows.tolist()]),
        "label": pa.array(answers.labels.numpy(), pa.int32()),
        "predicted": pa.array(predicted.numpy(), pa.int32()),
        "confidence": pa.array(logs.gather(1, predicted[:, None])[:, 0].exp().numpy(), pa.float32()),
    }
    if logs.numel() <= MOST_KEPT:
        values = pa.array(logs.numpy().reshape(-1), pa.float32())
        columns[LOG_PROBABILITIES] = pa.FixedSizeListArray.from_arrays(values, logs.shape[1])
    return pa.table(columns)
