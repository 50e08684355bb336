"""Metrics as sums, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from tlray.training.metrics import ClassificationSums


def random_logits(num_images: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize("num_classes", [2, 7])
def test_scores_over_uneven_batches_equal_those_of_scikit_learn_over_all_images(num_classes: int) -> None:
    logits, labels = random_logits(103, num_classes)
    sums = ClassificationSums(num_classes)
    for start, end in [(0, 50), (50, 51), (51, 51), (51, 103)]:
        sums.update(logits[start:end], labels[start:end])
    scores = sums.result()
    predicted, probabilities = logits.argmax(1).numpy(), logits.double().softmax(1).numpy()
    assert scores.num_images == 103
    assert scores.accuracy == accuracy_score(labels, predicted)
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert scores.loss == pytest.approx(log_loss(labels, probabilities, labels=range(num_classes)), rel=1e-6)
    if num_classes > 5:
        expected = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(num_classes))
        assert scores.top5_accuracy == expected
    else:
        assert scores.top5_accuracy == 1.0


def test_a_class_that_never_occurs_does_not_lower_macro_f1() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.eye(5)[torch.tensor([0, 1, 1, 1])]
    sums = ClassificationSums(5)
    sums.update(logits, labels)
    assert sums.result().macro_f1 == pytest.approx(f1_score([0, 0, 1, 1], [0, 1, 1, 1], average="macro"))


def test_sums_of_two_workers_add_up_to_one() -> None:
    logits, labels = random_logits(31, 4, seed=1)
    whole, first, second = (ClassificationSums(4) for _ in range(3))
    whole.update(logits, labels)
    first.update(logits[::2], labels[::2])
    second.update(logits[1::2], labels[1::2])
    theirs: list[torch.Tensor] = []
    second.reduce(lambda packed: theirs.append(packed) or packed)  # type: ignore[func-returns-value]
    first.reduce(lambda packed: packed + theirs[0])
    assert first.result().loss == pytest.approx(whole.result().loss, rel=1e-12)
    assert first.result().macro_f1 == whole.result().macro_f1
    assert np.array_equal(first.confusion, whole.confusion)
