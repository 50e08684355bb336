"""Every row of the catalogue, the models that articles name: found, known, prepared for, built, divided into blocks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tlray.catalogue import default_preprocessing, facts_of, libraries, resolve_id, split_id
from tlray.catalogue.data import rows
from tlray.config import BackboneConfig
from tlray.errors import BackboneError
from tlray.models.backbone import build_backbone

ROOT = Path(__file__).parent.parent.parent
IDS = list(dict.fromkeys(id_ for row in rows() for id_ in row.ids))
CHEAP = (
    "torchvision/alexnet",
    "torchvision/googlenet",
    "timm/mobilenetv1_100.ra4_e3600_r224_in1k",
    "timm/densenet264d",
)
NO_ACCURACY = {"timm/resnetv2_152", "timm/densenet264d"}  # architectures without weights

torch.set_num_threads(1)


def here(id_: str) -> bool:
    home = id_.partition("/")[0]
    return home in libraries.LIBRARIES and libraries.is_installed(home)


def test_the_rows_are_numbered_without_a_gap_and_one_without_ids_says_why() -> None:
    assert [row.number for row in rows()] == list(range(1, 43))
    assert all(row.ids or row.note for row in rows())


def test_rows_whose_weights_nobody_published_say_so() -> None:
    silent = {
        row.name.partition(" ")[0] for row in rows() if "never published" in row.note or "nor weights" in row.note
    }
    assert silent == {"NASNet-B,", "BiT-L", "Meta", "CoCa", "OmniVec"}
    for row in rows():
        if row.ids and "never published" in row.note and here(row.ids[0]):
            assert facts_of(row.ids[0]).num_params  # the architecture is there for a local checkpoint


@pytest.mark.parametrize("id_", [id_ for id_ in IDS if here(id_)])
def test_a_row_is_found_with_its_facts_and_its_preprocessing(id_: str) -> None:
    assert resolve_id(id_) == id_
    facts = facts_of(id_)
    for field in ("num_params", "gflops", "input_size", "feature_width", "num_blocks", "family"):
        assert getattr(facts, field), field
    assert facts.size_mb or facts.num_classes is None, "only what has no classifier of its own has no size"
    assert facts.usable
    if id_ not in NO_ACCURACY and facts.library in ("torchvision", "timm"):
        assert 50 < facts.top1 < facts.top5 < 100  # type: ignore[operator]
        assert facts.top_source
    assert default_preprocessing(id_).input_size == (facts.input_size, facts.input_size)


@pytest.mark.parametrize("id_", [id_ for id_ in IDS if not here(id_)])
def test_a_row_of_a_library_that_is_not_installed_says_which_extra(id_: str) -> None:
    home = id_.partition("/")[0]
    if home not in libraries.LIBRARIES:
        pytest.skip(f"{home} is no library of this version")
    with pytest.raises(BackboneError, match=r"pip install 'tlray\["):
        resolve_id(id_)


def check_build(id_: str) -> None:
    facts = facts_of(id_)
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(id=id_, weights="none"), num_classes=3)
    assert backbone.blocks_error is None
    assert len(backbone.blocks) == facts.num_blocks
    head = [p for name, p in backbone.model.named_parameters() if backbone.in_head(name) and p.ndim > 1]
    assert all(p.shape[0] == 3 for p in head)
    assert head[0].shape[1] == facts.feature_width
    with torch.no_grad():
        images = torch.empty(2, 3, *backbone.preprocessing.input_size, device="meta")
        assert backbone.model.eval()(images).shape == (2, 3)
    if split_id(id_).library == "timm":
        body = sum(p.numel() for name, p in backbone.model.named_parameters() if not backbone.in_head(name))
        per_class = sum(p.numel() for name, p in backbone.model.named_parameters() if backbone.in_head(name)) // 3
        assert body + per_class * (facts.num_classes or 0) == facts.num_params


@pytest.mark.parametrize("id_", CHEAP)
def test_a_small_model_of_a_row_is_built_with_a_new_head_and_its_blocks(id_: str) -> None:
    check_build(id_)


@pytest.mark.slow
@pytest.mark.parametrize("id_", [id_ for id_ in IDS if here(id_) and id_ not in CHEAP])
def test_every_row_is_built_with_a_new_head_and_its_blocks(id_: str) -> None:
    check_build(id_)


def test_the_page_of_models_is_what_the_catalogue_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.make_models_doc", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
