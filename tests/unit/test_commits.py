"""Epochs committed behind the training: in order, one at a time, reported when they are on disk."""

import dataclasses
import threading
from collections.abc import Callable

import pytest
import torch

from tlray.training.commits import Commits, snapshot
from tlray.training.epoch import EpochMetrics


def metrics(epoch: int) -> EpochMetrics:
    zero = dict.fromkeys((field.name for field in dataclasses.fields(EpochMetrics)), 0.0)
    return EpochMetrics(**{**zero, "epoch": epoch})


def train_until(error: BaseException, commit: Callable[[], None], report: Callable[[EpochMetrics], None]) -> None:
    with Commits(report, behind=True) as commits:
        commits.submit(commit, metrics(1))
        raise error


def test_an_epoch_is_reported_once_it_is_committed_and_never_before() -> None:
    reported: list[int] = []
    written = threading.Event()
    with Commits(lambda m: reported.append(m.epoch), behind=True) as commits:
        commits.submit(lambda: bool(written.wait(10)) or None, metrics(1))
        commits.poll()
        assert reported == []  # the next epoch trains meanwhile
        written.set()
        commits.submit(lambda: None, metrics(2))
        assert reported == [1]
    assert reported == [1, 2]


def test_workers_that_train_together_commit_and_report_at_once() -> None:
    order: list[str] = []
    with Commits(lambda m: order.append(f"report {m.epoch}"), behind=False) as commits:
        for epoch in (1, 2):
            commits.submit(lambda epoch=epoch: order.append(f"commit {epoch}"), metrics(epoch))
    assert order == ["commit 1", "report 1", "commit 2", "report 2"]


def test_a_commit_that_fails_ends_the_training_and_its_epoch_is_not_reported() -> None:
    def fails() -> None:
        raise OSError("no space left")

    reported: list[int] = []
    with pytest.raises(OSError, match="no space"), Commits(lambda m: reported.append(m.epoch), behind=True) as commits:
        commits.submit(fails, metrics(1))
    assert reported == []


def test_an_interrupted_process_ends_its_commit_and_reports_no_more() -> None:
    committed: list[int] = []
    reported: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train_until(KeyboardInterrupt(), lambda: committed.append(1), lambda m: reported.append(m.epoch))
    assert (committed, reported) == ([1], [])


def test_what_was_trained_before_a_failure_is_reported_before_it() -> None:
    reported: list[int] = []
    with pytest.raises(ValueError, match="diverged"):
        train_until(ValueError("diverged"), lambda: None, lambda m: reported.append(m.epoch))
    assert reported == [1]


def test_a_snapshot_keeps_the_values_that_training_goes_on_to_change() -> None:
    weights = torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    before = weights.clone()
    copies = snapshot({"w": weights})
    weights.zero_()
    kept = copies()["w"]
    assert kept.equal(before)
    assert kept.is_contiguous()
