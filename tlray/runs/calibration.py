"""How far a model's probabilities can be believed, and the one number that mends them: its temperature.

    temperature = fit_temperature(logs, labels)            # on the validation split
    error = calibration_error(logs / temperature, labels)  # on the test split

Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, ICML 2017: logits are divided by one number,
which changes no prediction; the expected calibration error compares confidence with accuracy in 15 equal bins.
Log-probabilities serve as logits, as the softmax of both is the same.
"""

from typing import Any

import numpy as np

from tlray.runs.combined_rows import Calibration
from tlray.runs.predictions import PREDICTED_SPLITS, load_probabilities
from tlray.runs.trials import Recorded

NUM_BINS = 15
# A prior on the temperature's logarithm, normal around 0: where a model is right about every one of a few validation
# images, the likelihood alone asks for a temperature of zero. It weighs as much as a handful of images.
PRIOR_DEVIATION = 0.5
LOWEST, HIGHEST = 0.05, 20.0
MOST_FITTED = 2**18  # values that a temperature is fitted on
GRID, NUM_ZOOMS = 25, 5  # the logarithm's steps are 3e-5 in the end


def calibrate(val_logs: np.ndarray, val_labels: np.ndarray, logs: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit on the validation split, measure on the test split; logs (N, C), labels (N,) int64."""
    temperature = fit_temperature(val_logs, val_labels)
    return Calibration(
        temperature=temperature,
        num_val_images=len(val_labels),
        ece_before=calibration_error(logs, labels),
        ece_after=calibration_error(logs / temperature, labels),
        loss_before=log_loss(logs, labels),
        loss_after=log_loss(logs / temperature, labels),
    )


def trial_calibration(run_uri: str, recorded: Recorded) -> Calibration | None:
    """Of a trial's best epoch; None where it has not kept its probabilities."""
    val, test = (load_probabilities(run_uri, recorded, split) for split in PREDICTED_SPLITS)
    if val is None or test is None:
        return None
    return calibrate(val.logs, val.labels, test.logs, test.labels)


def fit_temperature(logs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least log loss on these images, with the prior above; logs (N, C), labels (N,).

    Of very many images an even part is enough for one number.
    """
    step = -(-logs.size // MOST_FITTED)
    logs, labels = logs[::step].astype(np.float64), labels[::step]

    def loss(log_temperature: float) -> float:
        prior = 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2
        return len(labels) * log_loss(logs / np.exp(log_temperature), labels) + prior

    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(NUM_ZOOMS):
        grid = np.linspace(low, high, GRID)
        best = int(np.argmin([loss(place) for place in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    return float(np.exp(grid[best]))


def tempered(logs: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (N, C) float64 at that temperature."""
    return _log_softmax(logs.astype(np.float64) / temperature)


def calibrated_loss(logs: np.ndarray, labels: np.ndarray) -> float | None:
    """The log loss at the temperature fitted on these images, in nats per image; logs (N, C), labels (N,).

    None where one of the logits is no number.
    """
    if not np.isfinite(logs).all():
        return None
    return log_loss(logs / fit_temperature(logs, labels), labels)


def log_loss(logs: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the images of what the softmax of logs (N, C) costs; nats per image."""
    return float(-_log_softmax(logs)[np.arange(len(labels)), labels].mean())


def calibration_error(logs: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the softmax of logs (N, C), in NUM_BINS bins of equal width."""
    probabilities = np.exp(_log_softmax(logs))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)  # (low, high], as in the paper
    gaps: Any = np.bincount(bins, weights=confidence - correct, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _log_softmax(logs: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logs - logs.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
