"""Reading what trials have predicted: val_predictions.parquet and test_predictions.parquet of their folders. No torch.

    correct = load_correctness(run_uri, recorded)                  # bool (N,) on the test split
    predicted = load_probabilities(run_uri, recorded, "val")       # None where a trial has kept none

Columns: row, content_id, label, predicted, confidence, log_probabilities (C float32 each). The last column is left out
of a split with more than MOST_KEPT values, and trials of earlier versions of tlray have neither it nor the validation
file: such a trial takes part in no ensemble and has no temperature.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.errors import DamagedError
from tlray.runs.trials import PREDICTION_FILES, SCORE_AGAIN, Recorded, trial_uri
from tlray.storage import parquet
from tlray.storage.sealed import read_checked

PredictedSplit = Literal["val", "test"]
PREDICTED_SPLITS: tuple[PredictedSplit, ...] = ("val", "test")
LOG_PROBABILITIES = "log_probabilities"
MOST_KEPT = 2**22  # images times classes whose probabilities are kept: 16 MiB a file


@dataclass(frozen=True)
class Predicted:
    """Of the images of a split, in its order: labels (N,) int64 and log-probabilities (N, C) float32."""

    labels: np.ndarray
    logs: np.ndarray


def read_predictions(run_uri: str, recorded: Recorded, split: PredictedSplit, columns: Iterable[str]) -> pa.Table:
    """Columns of a trial's predictions, in the order of the split; DamagedError where they are not what was written."""
    name = PREDICTION_FILES[split]
    uri = trial_uri(run_uri, recorded.result.trial_id, name)
    try:
        data = read_checked(uri, recorded.files.get(name, ""), SCORE_AGAIN)
    except storage.NotFoundError:
        raise DamagedError(f"{uri} is missing: {SCORE_AGAIN}") from None
    return parquet.read_table(data, ["row", *columns]).sort_by("row")


def load_correctness(run_uri: str, recorded: Recorded) -> np.ndarray:
    """Whether each test image was classified correctly: bool (N,), in the order of the test split."""
    table = read_predictions(run_uri, recorded, "test", ["label", "predicted"])
    correct: np.ndarray = table["label"].to_numpy() == table["predicted"].to_numpy()
    return correct


def load_probabilities(run_uri: str, recorded: Recorded, split: PredictedSplit) -> Predicted | None:
    """What the trial's best epoch says of a split; None where it was not kept."""
    if PREDICTION_FILES[split] not in recorded.files:
        return None
    table = read_predictions(run_uri, recorded, split, ["label", LOG_PROBABILITIES])
    if LOG_PROBABILITIES not in table.column_names:
        return None
    values = table[LOG_PROBABILITIES].combine_chunks()
    logs = values.flatten().to_numpy().reshape(len(values), -1)
    return Predicted(table["label"].to_numpy().astype(np.int64), logs)
