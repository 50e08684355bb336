"""Which images are stored where: against plain dictionaries."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from activation_samples import KEY, image_ids

from tlray.activations.errors import ActivationError
from tlray.activations.index import (
    ActivationIndex,
    Shard,
    ShardEntry,
    entry_json,
    odd_ones,
    pack_ids,
    parse_entry,
    shard_id,
)


def make_shard(content_ids: list[str], shapes: tuple[tuple[int, ...], ...] = ((6,),), run: str = "a") -> Shard:
    name = shard_id(content_ids)
    return Shard(
        id=name,
        file=f"{name}-{'0' * 16}.safetensors",
        sha256="0" * 64,
        bytes=100,
        rows=len(content_ids),
        dtype="float16",
        shapes=shapes,
        run=run,
    )


def make_entry(content_ids: list[str], shapes: tuple[tuple[int, ...], ...] = ((6,),)) -> ShardEntry:
    shard = make_shard(content_ids, shapes)
    entry = parse_entry(f"{shard.id}.json", entry_json(shard, content_ids), KEY)
    assert entry is not None
    return entry


def test_images_are_found_where_their_entries_say() -> None:
    ids = image_ids(300)
    entries = [make_entry(ids[start : start + 7]) for start in range(0, 280, 7)]
    index = ActivationIndex(entries)
    assert len(index) == 280
    asked = [ids[position] for position in np.random.default_rng(0).permutation(300)]
    shards, rows = index.locate(asked)
    where = {one: (entry.id, row) for entry in entries for row, one in enumerate(entry.content_ids)}
    for content_id, shard, row in zip(asked, shards, rows, strict=True):
        assert (content_id in index) == (content_id in where)
        if content_id in where:
            assert (index.entries[shard].id, row) == where[content_id]
        else:
            assert (shard, row) == (-1, -1)


def test_of_two_shards_with_the_same_image_the_first_by_id_counts() -> None:
    ids = image_ids(30)
    entries = [make_entry(ids[:20]), make_entry(ids[10:])]
    first = min(entries, key=lambda entry: entry.id)
    for order in (entries, entries[::-1]):
        index = ActivationIndex(order)
        assert len(index) == 30
        shards, rows = index.locate(ids[10:20])
        assert {index.entries[shard].id for shard in shards} == {first.id}
        assert [first.content_ids[row] for row in rows] == ids[10:20]


def test_digests_that_end_in_zero_bytes_are_told_apart() -> None:
    ids = ["ab" * 30 + end for end in ("0000", "0001", "0100", "abab")] + ["00" * 32]
    index = ActivationIndex([make_entry(ids[:3]), make_entry(ids[4:])])
    assert [one in index for one in ids] == [True, True, True, False, True]


def test_an_empty_index_holds_nothing() -> None:
    index = ActivationIndex([])
    assert len(index) == 0
    assert image_ids(1)[0] not in index
    assert [array.tolist() for array in index.locate(image_ids(2))] == [[-1, -1], [-1, -1]]
    assert [array.tolist() for array in index.locate([])] == [[], []]


def test_an_image_takes_about_a_hundred_bytes() -> None:
    num_images, rows = 100_000, 1000
    random = np.random.default_rng(0)
    entries = [
        ShardEntry(**vars(make_shard(image_ids(1))) | {"rows": rows}, digests=random.bytes(32 * rows))
        for _ in range(num_images // rows)
    ]
    tracemalloc.start()
    try:
        index = ActivationIndex(entries)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == num_images
    assert held / num_images + 32 < 100  # with the 32 bytes that the entries held before


def test_a_shard_has_one_id_in_any_order_of_its_images() -> None:
    ids = image_ids(5)
    assert shard_id(ids) == shard_id(ids[::-1]) != shard_id(ids[:4])


@pytest.mark.parametrize("wrong", ["", "xyz", "0" * 63, "0" * 66, "g" * 64, " " + "0" * 64])
def test_what_is_no_sha256_is_named(wrong: str) -> None:
    with pytest.raises(ActivationError, match=r"content id .* is not a sha256") as caught:
        pack_ids([*image_ids(2), wrong])
    assert repr(wrong) in str(caught.value)


DAMAGE = {
    "no JSON": lambda fields: b"{",
    "no text": lambda fields: b"\xff\xfe\x00",
    "no object": lambda fields: b"[1, 2]",
    "a field less": lambda fields: {name: value for name, value in fields.items() if name != "sha256"},
    "a field more": lambda fields: fields | {"more": 1},
    "another name": lambda fields: fields | {"id": "0" * 32},
    "an image less": lambda fields: fields | {"content_ids": fields["content_ids"][1:]},
    "an image twice": lambda fields: fields | {"content_ids": [fields["content_ids"][0]] * 4},
    "other images": lambda fields: fields | {"content_ids": image_ids(4, first=100)},
    "no images": lambda fields: fields | {"content_ids": [], "rows": 0, "id": hashlib.sha256().hexdigest()[:32]},
    "another number of rows": lambda fields: fields | {"rows": 5},
    "another dtype": lambda fields: fields | {"dtype": "float32"},
    "a shape of nothing": lambda fields: fields | {"shapes": [[0]]},
    "shapes that are none": lambda fields: fields | {"shapes": [["a"]]},
    "a file elsewhere": lambda fields: fields | {"file": "../../../../etc/passwd"},
    "a checksum that is none": lambda fields: fields | {"sha256": "0"},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_is_not_as_written_is_none(damage: str) -> None:
    shard = make_shard(image_ids(4))
    data = entry_json(shard, image_ids(4))
    changed = DAMAGE[damage](json.loads(data))
    assert parse_entry(f"{shard.id}.json", data, KEY) is not None
    assert (
        parse_entry(f"{shard.id}.json", changed if isinstance(changed, bytes) else json.dumps(changed).encode(), KEY)
        is None
    )


def test_shapes_unlike_most_are_odd() -> None:
    usual = [make_entry(image_ids(2, first)) for first in (0, 2, 4)]
    other = [make_entry(image_ids(2, first), ((7,),)) for first in (6, 8)]
    assert sorted(entry.id for entry in odd_ones([*other, *usual])) == sorted(entry.id for entry in other)
    assert odd_ones(usual) == odd_ones([]) == []
    tie = [usual[0], other[0]]
    assert odd_ones(tie) == odd_ones(tie[::-1]) == [max(tie, key=lambda entry: entry.id)]
