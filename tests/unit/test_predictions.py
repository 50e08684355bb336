"""What trials keep of their predictions, against torch and scikit-learn.

Run: python -m pytest tests/unit/test_predictions.py
"""

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.special import softmax

from tlray.runs import predictions as reading
from tlray.runs.predictions import Predicted, load_correctness, load_probabilities
from tlray.runs.results import TrialResult
from tlray.runs.trials import PREDICTION_FILES, Recorded, trial_uri
from tlray.training import predictions as writing
from tlray.training.predictions import Answers, write_predictions

ROW = TrialResult(
    trial_id="t", backbone="b", weights="none", strategy="full", params={}, seed=0, status="completed",
    val_accuracy=0.5, test_accuracy=0.5,
)  # fmt: skip


def some_answers(num_images: int, num_classes: int, seed: int) -> Answers:
    """In the order in which several workers would leave them."""
    random = torch.Generator().manual_seed(seed)
    return Answers(
        rows=torch.randperm(num_images, generator=random),
        labels=torch.randint(num_classes, (num_images,), generator=random),
        logits=5 * torch.randn(num_images, num_classes, generator=random),
    )


def kept(run_uri: str, val: Answers, test: Answers) -> tuple[Recorded, float]:
    """As a trial would have recorded it, and its accuracy."""
    ids = {"val": [f"v{row}" for row in range(len(val.rows))], "test": [f"t{row}" for row in range(len(test.rows))]}
    scores, files = write_predictions(trial_uri(run_uri, "t"), {"val": val, "test": test}, ids)
    return Recorded(ROW, files), scores.accuracy


def test_both_splits_keep_the_log_probabilities_of_every_image_in_the_order_of_the_split(tmp_path: Path) -> None:
    val, test = some_answers(30, 4, seed=1), some_answers(50, 4, seed=2)
    recorded, accuracy = kept(str(tmp_path), val, test)
    for split, answers in (("val", val), ("test", test)):
        found = load_probabilities(str(tmp_path), recorded, split)
        assert found is not None
        order = answers.rows.argsort()
        expected = torch.log_softmax(answers.logits.double(), dim=1)[order].numpy()
        np.testing.assert_allclose(found.logs, expected, atol=1e-5)
        assert found.labels.tolist() == answers.labels[order].tolist()
        loss = sklearn.metrics.log_loss(found.labels, softmax(found.logs.astype(float), axis=1), labels=range(4))
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(answers.logits, answers.labels)), rel=1e-5)
    assert load_correctness(str(tmp_path), recorded).mean() == pytest.approx(accuracy)


def test_a_split_with_too_many_values_keeps_its_predictions_without_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MOST_KEPT", 30 * 4)
    recorded, accuracy = kept(str(tmp_path), some_answers(30, 4, seed=1), some_answers(31, 4, seed=2))
    assert isinstance(load_probabilities(str(tmp_path), recorded, "val"), Predicted)
    assert load_probabilities(str(tmp_path), recorded, "test") is None
    assert load_correctness(str(tmp_path), recorded).mean() == pytest.approx(accuracy)
    assert reading.MOST_KEPT == 2**22


def test_a_trial_of_an_earlier_version_has_no_probabilities(tmp_path: Path) -> None:
    recorded, _ = kept(str(tmp_path), some_answers(30, 4, seed=1), some_answers(31, 4, seed=2))
    name = PREDICTION_FILES["test"]
    assert load_probabilities(str(tmp_path), Recorded(ROW, {name: recorded.files[name]}), "val") is None
