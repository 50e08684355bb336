"""Files that are no weights are called what they are; names that training code leaves in weights are understood."""

import argparse
import gzip
import io
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from tlray.config import BackboneConfig, RunConfig
from tlray.errors import BackboneError
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.weights.kinds import PICKLED_SUFFIXES, SAFETENSORS
from tlray.models.weights.names import stripped, unwrapped
from tlray.models.weights.read import read_weights
from tlray.planning.first_look import look_at_config

ID = "timm/test_resnet"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    torch.manual_seed(1)
    return dict(timm.create_model("test_resnet", num_classes=10).state_dict())


def build(path: Path, num_classes: int = 3) -> Backbone:
    return build_backbone(BackboneConfig(id=ID, weights=str(path)), num_classes)


def assert_holds(backbone: Backbone, state: State) -> None:
    """All but the head."""
    found = backbone.model.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state if not key.startswith("fc."))


def pickled(content: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, **options)
    return sink.getvalue()


def archive(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name in names:
            file.writestr(name, b"contents")
    return sink.getvalue()


def tar(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def bomb() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w/data.pkl", bytes(10_000_000))
    return sink.getvalue()


ERROR = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'
ANYWHERE = {
    "empty": (b"", "an empty file: fetch it again"),
    "web page": (b"\n <!DOCTYPE html>\n<html><body>404</body></html>", "a web page: fetch it again"),
    "web page with a mark": (b"\xef\xbb\xbf<HTML>", "a web page"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        r"a git-LFS pointer.*git lfs pull",
    ),
    "S3's error": (ERROR, "an XML document, the error 'NoSuchKey' of an object store"),
    "JSON": (b'{"message": "Not Found"}', "JSON text"),
    "gzip": (gzip.compress(b"x", mtime=0), r"gzip-compressed: unpack it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(64), "a NumPy array"),
    "tar": (tar("w.pth", bytes(9)), r"a tar archive: unpack it first"),
    "text": (b"401 Unauthorized\n", "a text that begins with '401 Unauthorized'"),
}
PICKLED = {
    "cut zip": (pickled({"a": torch.zeros(999)})[:900], "its end is missing or damaged"),
    "other zip": (archive("a.txt", "b.txt"), r"a zip archive of 2 files \(a\.txt, b\.txt\)"),
    "bomb": (bomb(), "would unpack to 10000000"),
    "cut pickle": (pickled({"a": torch.zeros(9)}, _use_new_zipfile_serialization=False)[:60], "not a whole torch.save"),
    "safetensors": (save({"a": torch.zeros(2)}), r"one of safetensors under another name: rename it to w\.safetensors"),
    "code": (
        pickled(nn.Linear(1, 1)),
        r"would run code .* \(torch\.nn\.modules\.linear\.Linear\)",
    ),
    "no tensors": (pickled({"epoch": 3}), "holds no state dict"),
    "a list": (pickled([torch.zeros(1)]), "holds no state dict"),
}
SAFE = {
    "torch.save": (pickled({"a": torch.zeros(2)}), r"one of torch\.save under another name: rename it to w\.pth"),
    "cut header": (save({"a": torch.zeros(2)})[:20], r"it has 20 bytes and its header alone \d+"),
    "cut tensors": (save({"a": torch.zeros(99)})[:-9], "not a whole safetensors file"),
    "no tensors": (save({}), "holds no tensors"),
    "header": ((10**15).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
    "not JSON": ((9).to_bytes(8, "little") + b"{not json" + bytes(9), "not a whole safetensors file"),
}
CASES = [
    *(
        pytest.param(suffix, *case, id=f"{name}{suffix}")
        for suffix in (SAFETENSORS, *PICKLED_SUFFIXES)
        for name, case in ANYWHERE.items()
    ),
    *(pytest.param(".pth", *case, id=f"{name}.pth") for name, case in PICKLED.items()),
    *(pytest.param(SAFETENSORS, *case, id=f"{name}{SAFETENSORS}") for name, case in SAFE.items()),
]


@pytest.mark.parametrize(("suffix", "content", "message"), CASES)
def test_what_is_no_weights_file_is_called_what_it_is(
    suffix: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(BackboneError, match=rf"^weights '.*w{suffix}': .*{message}") as caught:
        read_weights(str(tmp_path / f"w{suffix}"))
    assert "\n" not in str(caught.value)


def test_a_torchscript_program_is_called_that(tmp_path: Path) -> None:
    sink = archive("w/data.pkl", "w/constants.pkl", "w/code/__torch__.py")
    (tmp_path / "w.pt").write_bytes(sink)
    with pytest.raises(BackboneError, match=r"a TorchScript program, which is code; save the tensors only"):
        read_weights(str(tmp_path / "w.pt"))


def test_a_run_is_refused_by_the_first_bytes_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (tmp_path / "images").mkdir()
    plain = {
        "name": "x",
        "storage": str(tmp_path / "runs"),
        "data": {"train": str(tmp_path / "images")},
        "backbones": [{"id": ID, "weights": str(tmp_path / "w.pth")}],
        "strategies": ["linear_probe"],
        "baseline": {"backbone": {"id": ID, "weights": "none"}},
    }
    with pytest.raises(BackboneError, match=r"^backbones\.0\.weights: .* a web page"):
        look_at_config(RunConfig.model_validate(plain))
    assert not (tmp_path / "runs").exists()


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(key): tensor.clone() for key, tensor in state.items()}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "net.",
    "encoder.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.",
    "model.backbone.",
    "module.encoder.net.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.",
    "ema_model.module.",
    "teacher.backbone.",
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_training_code_are_stripped_with_a_note(
    prefix: str, suffix: str, published: State, tmp_path: Path
) -> None:
    state = renamed(published, lambda key: f"{prefix}{key}")
    path = tmp_path / f"w{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    backbone = build(path)
    assert_holds(backbone, published)
    [note] = backbone.notes
    assert note.startswith(f"{path}: without ")


def test_wrappers_of_parts_of_a_model_are_stripped_too(published: State, tmp_path: Path) -> None:
    def rename(key: str) -> str:
        return key.replace("layer1.", "layer1._orig_mod.").replace("layer2.", "layer2.module.")

    save_file(renamed(published, rename), tmp_path / "w.safetensors")
    assert_holds(build(tmp_path / "w.safetensors"), published)


def test_what_lies_beside_the_backbone_is_left_out_and_named(published: State, tmp_path: Path) -> None:
    state = {f"model.backbone.{key}": tensor for key, tensor in published.items() if not key.startswith("fc.")}
    state |= {"model.head.weight": torch.zeros(4, 4), "loss.weight": torch.zeros(4)}
    torch.save(
        {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2.5"}, tmp_path / "w.pth"
    )
    backbone = build(tmp_path / "w.pth")
    assert_holds(backbone, published)
    assert any("2 tensors beside them are left out (model.head.weight, loss.weight)" in note for note in backbone.notes)


def test_weights_that_need_no_change_have_no_note(published: State, tmp_path: Path) -> None:
    save_file(published, tmp_path / "w.safetensors")
    assert build(tmp_path / "w.safetensors").notes == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, other: {"state_dict": other, "state_dict_ema": state},
        lambda state, other: {"model": other, "model_ema": {"module": state}},
        lambda state, other: {"state_dict": {f"module.{k}": v for k, v in other.items()}, "ema": {"state_dict": state}},
        lambda state, other: {"student": other, "teacher": {f"module.{k}": v for k, v in state.items()}},
        lambda state, other: {**other, **{f"ema.{k}": v for k, v in state.items()}},
    ],
)
def test_of_weights_and_their_moving_average_the_average_is_taken_and_said(
    wrap: Callable[[State, State], Any], published: State, tmp_path: Path
) -> None:
    other = {key: torch.zeros_like(tensor) for key, tensor in published.items()}
    torch.save(wrap(published, other), tmp_path / "w.pth")
    backbone = build(tmp_path / "w.pth")
    assert_holds(backbone, published)
    assert any("ema" in note or "teacher" in note for note in backbone.notes)


def test_containers_that_hold_no_weights_are_passed_over(published: State) -> None:
    state = OrderedDict(published)
    for content in (
        {"model_ema": None, "state_dict": state},
        {"ema": {"decay": 0.99}, "model": {"state_dict": state}},
        {"model": "resnet50", "model_state": state, "args": {"lr": 1}},
        {"encoder": {"net": {"module": state}}},
    ):
        found, notes = unwrapped(content)
        assert found == state
        assert notes == ()
    assert unwrapped({"model": {"model": {"model": {"model": {"model": state}}}}}) == (None, ())


def test_arguments_that_timms_training_keeps_beside_the_weights_are_data(published: State, tmp_path: Path) -> None:
    torch.save({"state_dict": published, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert_holds(build(tmp_path / "w.pth"), published)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["conv1.0.weight", "bn1.running_var", "fc.weight"])
def test_a_number_that_is_none_is_found_when_the_file_is_loaded(
    key: str, value: float, published: State, tmp_path: Path
) -> None:
    state = renamed(published, str)
    state[key].view(-1)[1] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=rf"w\.safetensors: 1 of \d+ numbers in {key} are NaN or infinite"):
        build(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_precisions_become_the_models(dtype: torch.dtype, published: State, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in published.items()}
    torch.save(state, tmp_path / "w.pth")
    found = build(tmp_path / "w.pth").model.state_dict()
    for key in state:
        if not key.startswith("fc."):
            assert found[key].dtype == published[key].dtype
            assert torch.equal(found[key], state[key].to(found[key].dtype))


def test_numbers_beyond_the_models_precision_and_integers_are_refused(published: State, tmp_path: Path) -> None:
    key = "conv1.0.weight"
    torch.save({**published, key: published[key].double() + 1e300}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"numbers in {key} are NaN or infinite"):
        build(tmp_path / "w.pth")
    torch.save({**published, key: published[key].to(torch.int8)}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"{key} holds int8, where a model computes with real numbers"):
        build(tmp_path / "w.pth")


NAMES = st.lists(st.sampled_from(["conv.weight", "layer.0.bias", "encoder.x", "model.y", "module.z"]), unique=True)


@settings(deadline=None)
@given(NAMES, st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone", "ema"]), max_size=3))
def test_stripping_finds_the_names_behind_any_prefix(names: list[str], words: list[str]) -> None:
    prefix = "".join(f"{word}." for word in words)
    found, _ = stripped({f"{prefix}{name}": name for name in names}, names)
    assert found == {name: name for name in names}


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"{\x02", b"[\x02", b"<\x02", b"\x80\x02"])
def test_a_header_whose_length_begins_like_another_format_is_a_header(start: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(start, "little")
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    assert torch.equal(read_weights(str(tmp_path / "w.safetensors")).tensors["a"], torch.zeros(2))


def test_a_models_own_names_keep_what_looks_like_a_prefix() -> None:
    names = ["encoder.layer.weight", "model.head.weight", "encoder.encoder.bias"]
    assert stripped(dict.fromkeys(names, 0), names) == (dict.fromkeys(names, 0), ())
    assert np.all([stripped({f"module.{name}": 0 for name in names}, names)[0] == dict.fromkeys(names, 0)])
