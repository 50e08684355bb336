"""What S3 is told before any server is asked: settings, endpoints, credentials; servers are for tests/integration."""

import os

import pytest

from tlray import storage
from tlray.errors import StorageError


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own S3 configuration, and nobody to ask for credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.forget_clients()


def test_an_endpoint_where_nobody_listens_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRAY_S3_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret-password@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    with pytest.raises(StorageError, match=r"cannot connect to http://127\.0\.0\.1:9 ") as caught:
        storage.read_bytes("s3://bucket/object")
    assert "secret" not in str(caught.value)


def test_half_of_the_credentials_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(StorageError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        list(storage.list_files("s3://bucket"))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("AWS_ENDPOINT_URL", "nonsense", "AWS_ENDPOINT_URL"), ("AWS_PROFILE", "nobody", r"profile \(nobody\)")],
)
def test_a_wrong_setting_is_named(variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError, match=said):
        storage.exists("s3://bucket/object")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TLRAY_S3_READ_TIMEOUT", "soon", "TLRAY_S3_READ_TIMEOUT='soon' is not a number above zero"),
        ("TLRAY_S3_ATTEMPTS", "0", "TLRAY_S3_ATTEMPTS='0' is not a whole number above zero"),
        ("TLRAY_S3_ATTEMPTS", "1.5", "TLRAY_S3_ATTEMPTS='1.5' is not a whole number above zero"),
        ("TLRAY_S3_BACKOFF", "nan", "TLRAY_S3_BACKOFF='nan' is not a number above zero"),
        ("AWS_NO_SIGN_REQUEST", "perhaps", "AWS_NO_SIGN_REQUEST='perhaps' is neither yes nor no"),
        ("AWS_CA_BUNDLE", "/no/such/file", "/no/such/file"),
    ],
)
def test_a_setting_of_s3_that_makes_no_sense_is_named(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError, match=said) as caught:
        storage.read_bytes("s3://bucket/object")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "region", "bucket", "expected"),
    [
        (None, None, "photos", ("https://photos.s3.amazonaws.com", True)),
        (None, "eu-west-1", "photos", ("https://photos.s3.eu-west-1.amazonaws.com", True)),
        (None, "eu-west-1", "photos.example.org", ("https://s3.eu-west-1.amazonaws.com", False)),
        (None, "cn-north-1", "photos", ("https://photos.s3.cn-north-1.amazonaws.com.cn", True)),
        ("http://127.0.0.1:9000", "eu-west-1", "photos", ("http://127.0.0.1:9000", False)),
        ("https://user:password@minio.example", None, "photos", ("https://minio.example", False)),
    ],
)
def test_buckets_are_where_boto3_would_look_for_them(
    endpoint: str | None, region: str | None, bucket: str, expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlray.storage.s3_access import access

    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if region is not None:
        monkeypatch.setenv("AWS_REGION", region)
    clients = access()
    assert clients._bucket_endpoint(bucket, clients.once.meta.region_name) == expected


def test_the_pauses_between_attempts_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tlray.storage.s3_retry.time.sleep", pauses.append)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot connect"):
            storage.read_bytes("s3://bucket/object")
    assert len(pauses) == 2 * 5
    for longest, pause in zip([0.5, 1, 2, 4, 8] * 2, pauses, strict=True):
        assert longest / 2 <= pause <= longest
    assert pauses[:5] != pauses[5:]
