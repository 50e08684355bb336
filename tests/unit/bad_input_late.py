"""Bad inputs that only images, weights and exports show: `tlray plan` looks at them, and starts no Ray."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from tests.unit.bad_input_case import Content, command, planned, png
from tlray.data.splits import position
from tlray.runs.champion import FORMAT_VERSION
from tlray.storage.sealed import sealed


def folders(name: str, counts: dict[str, int], first: int = 0) -> dict[str, Content]:
    """Class folders with so many images each, all different."""
    seeds = iter(range(first, first + sum(counts.values())))
    return {
        f"{name}/{label}/{place}.png": png(next(seeds)) for label, count in counts.items() for place in range(count)
    }


def tar(members: dict[str, bytes], cut: int | None = None, tail: bytes = b"") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()[:cut] + tail


def samples(count: int, first: int = 0, label: str = "cls") -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for place in range(first, first + count):
        members |= {f"{place:04}.png": png(place), f"{place:04}.{label}": str(place % 2).encode()}
    return members


def table(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path)


def parquet(**columns: list) -> Content:
    return lambda path: table(path, **columns)


def weights(**tensors: torch.Tensor) -> Content:
    return lambda path: save_file(tensors, path)


GOOD = {"a": 20, "b": 20}
COPIED = {f"set/{label}/{place}.png": png(place) for label in "ab" for place in range(20)}
LEAKED = {**folders("set", GOOD), **folders("own", GOOD)}
HTML = {f"set/{label}/{place}.jpg": f"<html>{label}{place}</html>" for label in "ab" for place in range(4)}
SOME_BAD = {**folders("set", {"a": 6, "b": 6}), **{f"set/a/x{n}.jpg": b"\xff\xd8\xff" + bytes([n]) for n in range(3)}}
LISTED = {f"i/{place}.png": png(place) for place in range(12)}


# The only image of its class, and a seed that puts it into test.
LONE = png(900)
LONE_SEED = next(seed for seed in range(100) if position(seed, hashlib.sha256(LONE).hexdigest()) < 0.4)


def csv(*lines: str) -> dict[str, Content]:
    return {"t.csv": "\n".join(lines) + "\n", **LISTED}


IMAGES = [png(place) for place in range(12)]

DATA = [
    planned("data.train=empty", "empty", files={"empty/.hidden": ""}),
    planned("data.train=set", "only", "class", files=folders("set", {"only": 6})),
    planned("data.train=set", "set", files={f"set/{n}.png": png(n) for n in range(6)}),
    planned("data.train=set", "0.jpg", files=HTML),
    planned("data.train=set", "3 of 15", "max_bad_fraction", files=SOME_BAD),
    planned("data.train=set data.max_bad_fraction=0", "max_bad_fraction", files=SOME_BAD),
    planned("data.train=set", "another class", "data.exclude", files=COPIED),
    planned("data.train=set data.val=own", "max_leaked_fraction", files=LEAKED),
    planned("data.train=set data.test=own", "max_leaked_fraction", files=LEAKED),
    planned("data.train=photos data.val=own", "'c'", files=folders("own", {"c": 4})),
    planned(
        f"data.train=set data.val_fraction=0.4 data.test_fraction=0.4 data.split_seed={LONE_SEED}",
        "'few' has 1 ",
        "none of them in train",
        files={**folders("set", {"many": 35}), "set/few/0.png": LONE},
    ),
    planned("data.train=set data.exclude=*", "set", files=folders("set", GOOD)),
    planned("data.train=notes.txt", "notes.txt", files={"notes.txt": "words"}),
    planned("data.train=photos/blue/00.jpg", "00.jpg"),
    planned("data.train=photo[1-", "photo[1-", "does not exist"),
    planned("data.train=t.csv", "t.csv", "label", files=csv("uri,class", "i/0.png,a")),
    planned("data.train=t.csv", "t.csv", "uri", files=csv("path,label", "i/0.png,a")),
    planned("data.train=t.csv data.columns.label=kind", "t.csv", "kind", files=csv("uri,label", "i/0.png,a")),
    planned("data.train=t.csv", "t.csv", files=csv("uri,label")),
    planned("data.train=t.csv", "t.csv", files={"t.csv": b""}),
    planned(
        "data.train=t.csv",
        "t.csv",
        "split",
        "'trian'",
        files=csv("uri,label,split", "i/0.png,a,trian", "i/1.png,b,val"),
    ),
    planned("data.train=t.csv", "t.csv", files={"t.csv": b"uri,label\n\xff\xfe,a\n"}),
    planned("data.train=t.csv", "t.csv", files={"t.csv": "uri,label\n" + '"open,a\n' * 3}),
    planned(
        "data.train=t.csv",
        "does not exist",
        files={"t.csv": "uri,label\n" + "".join(f"no/{n}.png,{'ab'[n % 2]}\n" for n in range(9))},
    ),
    planned("data.train=t.parquet", "t.parquet", files={"t.parquet": b"not parquet"}),
    planned("data.train=t.parquet", "t.parquet", files={"t.parquet": b"PAR1" + bytes(100) + b"PAR1"}),
    planned("data.train=t.parquet", "t.parquet", "label", files={"t.parquet": parquet(image=IMAGES)}),
    planned("data.train=t.parquet", "t.parquet", files={"t.parquet": parquet(label=["a", "b"])}),
    planned("data.train=t.parquet", "t.parquet", "label", files={"t.parquet": parquet(image=IMAGES, label=[0.5] * 12)}),
    planned(
        "data.train=t.parquet data.columns.image=pic",
        "t.parquet",
        "data.columns.image",
        files={"t.parquet": parquet(image=IMAGES, label=["a", "b"] * 6)},
    ),
    planned("data.train=s.tar", "s.tar", files={"s.tar": b"not a tar at all"}),
    planned("data.train=s.tar", "s.tar", files={"s.tar": tar(samples(20), cut=9000)}),
    planned("data.train=s.tar", "s.tar", files={"s.tar": tar(samples(20)) + tar(samples(20, 20))}),
    planned("data.train=s.tar", "s.tar", files={"s.tar": tar(samples(20), tail=b"rest" * 200)}),
    planned("data.train=s.tar", "s.tar", files={"s.tar": tar({})}),
    planned("data.train=s.tar", "label", files={"s.tar": tar({f"{n}.png": png(n) for n in range(8)})}),
    planned(
        "data.train=s.tar",
        "label",
        files={"s.tar": tar({k: v for n in range(8) for k, v in ((f"{n}.png", png(n)), (f"{n}.json", b"{}"))})},
    ),
    planned(
        "data.train=s.tar",
        "json",
        files={"s.tar": tar({k: v for n in range(8) for k, v in ((f"{n}.png", png(n)), (f"{n}.json", b"[" * 20_000))})},
    ),
    planned("data.train=s.tar.gz", "s.tar.gz", files={"s.tar.gz": gzip.compress(tar(samples(20)))[:900]}),
    planned("data.train=set data.format=csv", "set", "csv", files=folders("set", GOOD)),
    planned("data.train=set data.format=webdataset", "set", files=folders("set", GOOD)),
]

NET = "backbones.0.weights="
WEIGHTS = [
    planned(
        f"{NET}w.safetensors",
        "another architecture",
        "somewhere.weight",
        files={"w.safetensors": weights(**{"somewhere.weight": torch.zeros(3, 3)})},
    ),
    planned(f"{NET}w.safetensors", "w.safetensors", files={"w.safetensors": b"not safetensors"}),
    planned(f"{NET}w.safetensors", "w.safetensors", files={"w.safetensors": b""}),
    planned(f"{NET}w.safetensors", "w.safetensors", files={"w.safetensors": (2**62).to_bytes(8, "little") + b"{}"}),
    planned(
        f"{NET}w.safetensors", "w.safetensors", files={"w.safetensors": (20_000).to_bytes(8, "little") + b"[" * 20_000}
    ),
    planned(f"{NET}w.pth", "w.pth", files={"w.pth": b"<!DOCTYPE html><html>not found</html>"}),
    planned(
        f"{NET}w.pth",
        "w.pth",
        files={"w.pth": "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"},
    ),
    planned(f"{NET}w.pth", "w.pth", files={"w.pth": b"\x80\x04cos\nsystem\n."}),
    planned(f"{NET}w.onnx", "w.onnx", files={"w.onnx": b"onnx"}),
    planned(f"{NET}photos", "photos"),
    planned('backbones.0.options={"nope":1}', "nope"),
    planned('strategies=[{"strategy":"partial","trainable_blocks":99}]', "99", "timm/test_resnet"),
]


def sums(config: str) -> str:
    """SHA256SUMS of a bundle whose config.json is that text, and whose weights are something else."""
    return f"{hashlib.sha256(config.encode()).hexdigest()}  config.json\n{'0' * 64}  model.safetensors\n"


def bundle(config: str) -> dict[str, Content]:
    return {"bundle/SHA256SUMS": sums(config), "bundle/config.json": config, "bundle/model.safetensors": b""}


OURS = sealed({"format_version": FORMAT_VERSION})
MODELS = [
    command("predict nowhere/run photos", "nowhere"),
    command("predict photos photos", "photos", "export bundle"),
    command("predict torchvision/resnet51 photos", "torchvision/resnet51", "torchvision/resnet50"),
    command("predict nolib/net photos", "nolib"),
    command("predict timm/test_resnet nowhere.jpg", "nowhere.jpg", "does not exist"),
    command("predict timm/test_resnet nowhere/*.jpg", "nowhere/*.jpg"),
    command("predict timm/test_resnet photos --weights nowhere.pth", "nowhere.pth"),
    command("predict champion.json photos", "champion.json", "damaged", "copy", files={"champion.json": "{"}),
    command("predict champion.json photos", "champion.json", files={"champion.json": "[" * 20_000}),
    command(
        "predict champion.json photos",
        "champion.json",
        "format_version 9",
        files={"champion.json": sealed({"format_version": 9})},
    ),
    command(
        "predict champion.json photos",
        "champion.json",
        "export",
        files={"champion.json": sealed({"format_version": FORMAT_VERSION})},
    ),
    command("predict bundle photos", "bundle", files={"bundle/SHA256SUMS": "words"}),
    command("predict bundle photos", "config.json", files={"bundle/SHA256SUMS": sums("")}),
    command("predict bundle photos", "config.json", files={"bundle/SHA256SUMS": sums("x"), "bundle/config.json": "y"}),
    command("predict bundle photos", "config.json", "format_version", files=bundle("{}")),
    command("predict bundle photos", "config.json", "JSON", files=bundle("{")),
    command("predict bundle photos", "config.json", "JSON", files=bundle("[]")),
    command("predict bundle photos", "config.json", "JSON", files=bundle("[" * 20_000)),
    command("predict bundle photos", "config.json", "not one that tlray wrote", files=bundle('{"format_version": 1}')),
    command("evaluate nowhere photos", "nowhere"),
    command("evaluate photos photos", "photos", "export bundle"),
    command("predict nowhere photos --output out", "nowhere"),
    command("predict nowhere photos --output out --dry-run", "nowhere"),
    command("promote nowhere", "nowhere"),
    command("promote photos", "photos", "export bundle"),
    command("promote photos --into nowhere.yaml", "nowhere.yaml"),
    command("promote photos --into config.yaml", "photos"),
    command("promote . --history", "champion.json", files={"champion.json": "[" * 20_000}),
]

LATE = [*DATA, *WEIGHTS, *MODELS]
