"""What may pass is told from what lasts, in one place, and a run with failures that may pass is not done."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_run import make_run
from rich.console import Console

from tlray import storage
from tlray.activations.errors import DamagedShardError
from tlray.errors import DamagedError, DataError, StorageError, TrialError, UnreachableError
from tlray.runs.trials import load_results, write_trial_result
from tlray.storage import s3_settings
from tlray.storage.s3_errors import RequestFailed, explained
from tlray.workflows.conclude import conclude

ray = pytest.importorskip("ray")

from tlray.distributed.errors import may_pass  # noqa: E402


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("s3://bucket/a: no answer"),
        DamagedError("run/trials/000/trial.json is damaged: put it back"),
        DamagedShardError("activations/k/shards/s is damaged: a resume computes it anew"),
        ray.exceptions.RayTaskError("task", "traceback", UnreachableError("s3://bucket/a: no answer")),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.NodeDiedError("its node died"),
        ray.exceptions.ActorDiedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_store_file_node_or_process_may_come_back(error: BaseException) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        DataError("photo.jpg is gone"),
        StorageError("s3://bucket: access denied"),
        ray.exceptions.RayTaskError("task", "traceback", ValueError("bad data")),
        ray.exceptions.OutOfMemoryError("the node ran out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_bad_data_wrong_settings_and_too_little_memory_do_not_pass(error: BaseException | None) -> None:
    assert not may_pass(error)


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage.forget_clients()


@pytest.mark.parametrize(
    "failure",
    [
        RequestFailed("EndpointConnectionError"),
        RequestFailed("SlowDown", 503),
        RequestFailed("InternalError", 500),
        RequestFailed("ExpiredToken", 400),
    ],
    ids=lambda failure: failure.code,
)
def test_a_store_that_is_away_throttles_or_has_seen_its_credentials_end_is_unreachable(failure: RequestFailed) -> None:
    assert isinstance(explained("s3://bucket/a", failure), UnreachableError)


@pytest.mark.parametrize(
    "failure",
    [RequestFailed("AccessDenied", 403), RequestFailed("NoSuchBucket", 404), RequestFailed("InvalidAccessKeyId", 403)],
    ids=lambda failure: failure.code,
)
def test_a_store_that_refuses_is_not(failure: RequestFailed) -> None:
    assert not isinstance(explained("s3://bucket/a", failure), UnreachableError)


def test_expired_credentials_are_said_to_have_expired() -> None:
    said = str(explained("s3://bucket/a", RequestFailed("ExpiredToken", 400)))
    assert "the credentials have expired" in said
    assert "\n" not in said


def test_a_runs_work_is_patient_in_time_and_what_somebody_waits_for_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_settings, "_patient", False)
    ordinary = s3_settings.settings_from_environment()
    assert (ordinary.attempts, ordinary.total_timeout) == (6, 60.0)
    storage.be_patient()
    patient = s3_settings.settings_from_environment()
    assert (patient.attempts, patient.total_timeout) == (None, 600.0)
    monkeypatch.setenv("TLRAY_S3_TOTAL_TIMEOUT", "5")
    monkeypatch.setenv("TLRAY_S3_ATTEMPTS", "2")
    chosen = s3_settings.settings_from_environment()
    assert (chosen.attempts, chosen.total_timeout) == (2, 5.0)


def test_a_run_with_a_failure_that_may_pass_is_shown_and_not_done(tmp_path: Path) -> None:
    run_uri = str(tmp_path / "run")
    make_run(run_uri, failed=[1])
    (failed,) = [row for row in load_results(run_uri) if row.status == "failed"]
    write_trial_result(run_uri, failed.model_copy(update={"may_pass": True, "error": "s3://bucket: no answer"}))
    asked_for = {"config": SimpleNamespace(seed=0), "manifest": SimpleNamespace(warnings=())}  # before the exports
    run: Any = SimpleNamespace(uri=run_uri, **asked_for)
    words = rf"1 of \d+ trials failed for a reason that may pass \({failed.trial_id}: s3://bucket: no answer\)"
    with pytest.raises(TrialError, match=rf"{words}; `tlray resume {run_uri}`"):
        conclude(run, Console(file=io.StringIO()))
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "DONE").exists()
    assert not (tmp_path / "run" / "exports").exists()
