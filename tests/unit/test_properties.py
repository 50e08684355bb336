"""What holds for any values: manifests come back from a run folder as they were, equal work has equal keys, a lease is
held as long as its block, and run folders sort by time."""

import json
import tempfile
import time
from dataclasses import asdict
from typing import Any
from unittest import mock

from activation_samples import KEY
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray import storage
from tlray.activations.keys import ActivationKey
from tlray.config.file import parse_config
from tlray.data.manifest import BadImage, Image, Manifest
from tlray.runs.folder import write_format
from tlray.runs.manifest import load_manifest, save_manifest
from tlray.runs.prepare import new_run_uri
from tlray.storage.stores.folder import ShardFolder
from tlray.storage.stores.lease import holders, lease

FEW = settings(max_examples=25, deadline=None)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
CLASSES = st.lists(TEXT, min_size=2, max_size=4, unique=True)
IMAGE = st.builds(
    Image,
    uri=TEXT,
    label=st.integers(0, 1),
    split=st.sampled_from(["train", "val", "test"]),
    content_id=st.binary(min_size=32, max_size=32).map(bytes.hex),
    num_bytes=st.integers(0, 2**40),
    width=st.integers(1, 2**20),
    height=st.integers(1, 2**20),
    version=TEXT,
    shard=TEXT,
    row=st.integers(-1, 2**30),
)
PLAIN: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.builds(
    ActivationKey,
    backbone=TEXT,
    options=PLAIN.map(json.dumps),
    weights_hash=TEXT,
    num_frozen=st.integers(0, 100),
    preprocessing=PLAIN.map(json.dumps),
    augmentation=TEXT,
    view=st.integers(0, 100),
    dtype=st.sampled_from(["float16", "float32"]),
    precision=st.sampled_from(["float32", "bfloat16"]),
    split_version=st.integers(0, 100),
    pixels=PLAIN.map(json.dumps),
)


@FEW
@given(
    CLASSES,
    st.lists(IMAGE, min_size=1, max_size=6),
    st.lists(st.builds(BadImage, uri=TEXT, reason=TEXT.filter(lambda reason: reason != "ok")), max_size=3),
    st.lists(TEXT, max_size=2),
)
def test_a_manifest_comes_back_from_a_run_folder_as_it_was(
    classes: list[str], images: list[Image], bad: list[BadImage], notes: list[str]
) -> None:
    manifest = Manifest(tuple(classes), images, tuple(bad), tuple(notes), tuple(reversed(notes)))
    with tempfile.TemporaryDirectory() as folder:
        write_format(folder, save_manifest(manifest, folder))
        loaded = load_manifest(folder)
    assert list(loaded.images) == images
    assert (loaded.classes, loaded.bad) == (manifest.classes, manifest.bad)
    assert (loaded.notes, loaded.warnings) == (manifest.notes, manifest.warnings)
    assert loaded.fingerprint == manifest.fingerprint


def respelt(key: ActivationKey) -> ActivationKey:
    """The same computation with its JSON written in another way."""
    fields = asdict(key)
    for name in ("options", "preprocessing", "pixels"):
        value = json.loads(fields[name])
        turned = dict(reversed(list(value.items()))) if isinstance(value, dict) else value
        fields[name] = json.dumps(turned, indent=2, ensure_ascii=False)
    return ActivationKey(**fields)


@FEW
@given(KEYS, KEYS)
def test_two_keys_have_one_digest_where_they_ask_for_the_same_and_only_there(
    one: ActivationKey, other: ActivationKey
) -> None:
    assert respelt(one).digest == one.digest
    same = json.dumps(one.spec(), sort_keys=True) == json.dumps(other.spec(), sort_keys=True)
    assert (one.digest == other.digest) == same
    assert ActivationKey(**asdict(one)).digest == one.digest


@FEW
@given(st.sampled_from(sorted(asdict(KEY))), TEXT)
def test_no_field_of_a_key_is_left_out_of_its_digest(field: str, text: str) -> None:
    before = getattr(KEY, field)
    changed = before + 1 if isinstance(before, int) else json.dumps({"given": text})
    assert ActivationKey(**{**asdict(KEY), field: changed}).digest != KEY.digest


@FEW
@given(st.lists(TEXT.filter(bool), min_size=1, max_size=3, unique=True))
def test_leases_are_held_by_their_runs_until_their_blocks_end(runs: list[str]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = ShardFolder(path)
        open_leases = [lease(run, [folder]) for run in runs]
        for number, one in enumerate(open_leases, start=1):
            one.__enter__()
            assert holders(folder) == tuple(sorted(runs[:number]))
        for number, one in enumerate(open_leases, start=1):
            one.__exit__(None, None, None)
            assert holders(folder) == tuple(sorted(runs[number:]))


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)


@FEW
@given(NAMES, st.lists(st.integers(0, 2**32), min_size=2, max_size=4, unique=True).map(sorted))
def test_run_folders_lie_below_their_name_and_sort_by_time(name: str, seconds: list[int]) -> None:
    config = parse_config("name: x\ndata: {train: d}\nbackbones: [b]\n", [f"name={name}", "storage=/runs"])
    moments = [time.gmtime(second) for second in seconds]
    with mock.patch("time.gmtime", side_effect=moments):
        uris = [new_run_uri(config) for _ in seconds]
    assert all(uri.startswith(storage.join("/runs", name) + "/") for uri in uris)
    assert all(uri.count("/") == 3 for uri in uris)
    assert uris == sorted(uris)
    assert len({new_run_uri(config) for _ in range(3)}) == 3
