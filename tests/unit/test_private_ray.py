"""What tlray changes inside Ray does what it is meant to in the Ray that is installed."""

from pathlib import Path

import pytest

ray = pytest.importorskip("ray")


def test_tune_gives_actors_no_keys_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution import class_cache

    from tlray.distributed.private_ray import keep_secrets_at_home

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    for name in (*names, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "canary")

    class Trainable:
        """Anything."""

    assert "canary" in str(class_cache._ActorClassCache().get(Trainable)._default_options), "Ray has mended it itself"
    keep_secrets_at_home()
    assert "canary" not in str(class_cache._ActorClassCache().get(Trainable)._default_options)


def test_a_ray_that_was_started_here_and_has_died_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would try the address again and again; so would a command on a head that has lost its Ray."""
    from tlray.distributed.cluster import connect
    from tlray.distributed.private_ray import address_file
    from tlray.errors import ClusterError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    Path(address_file()).parent.mkdir(exist_ok=True)
    Path(address_file()).write_text("127.0.0.9:6379")
    assert str(tmp_path) in address_file()
    with pytest.raises(
        ClusterError, match=r"the Ray at 127\.0\.0\.9:6379, which .*ray_current_cluster names, .*ray stop"
    ):
        connect()
    assert not ray.is_initialized()
