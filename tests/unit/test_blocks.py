"""Blocks against published architectures, and the trace against the model that it was made from."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from tlray.errors import BackboneError
from tlray.models.blocks import Trace, trace_model

torch.set_num_threads(1)

# number of blocks: residual blocks, inception modules, dense layers, ... of the architecture, its stem and, where there
# is one, the layer in front of the classifier
NUM_BLOCKS = {
    "torchvision/alexnet": 7,
    "torchvision/googlenet": 12,
    "torchvision/inception_v3": 16,
    "timm/inception_v3": 16,
    "timm/inception_v4": 22,
    "timm/inception_resnet_v2": 49,
    "torchvision/vgg16": 15,
    "timm/vgg16": 14,
    "torchvision/resnet50": 17,
    "timm/resnet50": 17,
    "timm/resnet101": 34,
    "timm/resnetv2_50": 17,
    "torchvision/efficientnet_b0": 18,
    "timm/tf_efficientnet_b0": 18,
    "torchvision/densenet121": 62,
    "timm/densenet121": 62,
    "timm/mobilenetv1_100": 14,
    "torchvision/mobilenet_v2": 19,
    "timm/mobilenetv2_100": 19,
    "torchvision/mobilenet_v3_large": 18,
    "timm/mobilenetv3_small_100": 14,
    "timm/nasnetalarge": 23,
    "timm/legacy_xception": 16,
    "timm/xception41": 15,
    "torchvision/vit_b_16": 13,
    "timm/vit_base_patch16_224": 13,
    "timm/deit_base_distilled_patch16_224": 13,
    "timm/resnetv2_50x1_bit": 17,
}
HEADS = {
    "torchvision/alexnet": ("classifier.6",),
    "torchvision/densenet121": ("classifier",),
    "torchvision/efficientnet_b0": ("classifier.1",),
    "torchvision/mobilenet_v2": ("classifier.1",),
    "torchvision/mobilenet_v3_large": ("classifier.3",),
    "torchvision/vgg16": ("classifier.6",),
    "torchvision/vit_b_16": ("heads.head",),
    "timm/deit_base_distilled_patch16_224": ("head", "head_dist"),
    "timm/densenet121": ("classifier",),
    "timm/mobilenetv1_100": ("classifier",),
    "timm/mobilenetv2_100": ("classifier",),
    "timm/mobilenetv3_small_100": ("classifier",),
    "timm/tf_efficientnet_b0": ("classifier",),
    "timm/inception_resnet_v2": ("classif",),
    "timm/inception_v4": ("last_linear",),
    "timm/nasnetalarge": ("last_linear",),
    "timm/resnetv2_50": ("head.fc",),
    "timm/resnetv2_50x1_bit": ("head.fc",),
    "timm/vgg16": ("head.fc",),
    "timm/vit_base_patch16_224": ("head",),
    "timm/xception41": ("head.fc",),
}


def on_meta(model_id: str, **options: object) -> nn.Module:
    library, _, name = model_id.partition("/")
    if name in ("googlenet", "inception_v3") and library == "torchvision":
        options = {"init_weights": False, **options}
    with torch.device("meta"):
        return timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("model_id", NUM_BLOCKS)
def test_blocks_are_the_architectures_units_and_own_every_parameter_once(model_id: str) -> None:
    model = on_meta(model_id, aux_logits=False) if "googlenet" in model_id else on_meta(model_id)
    trace = trace_model(model, HEADS.get(model_id, ("fc",)))
    assert len(trace.blocks) == NUM_BLOCKS[model_id]
    assert [block.index for block in trace.blocks] == list(range(len(trace.blocks)))
    in_blocks = [name for block in trace.blocks for name in block.parameters]
    assert len(set(in_blocks)) == len(in_blocks)
    head = [name for name, _ in model.named_parameters() if name.startswith(HEADS.get(model_id, ("fc",)))]
    if not model_id.endswith("inception_v3"):  # torchvision's has an auxiliary head
        assert set(in_blocks) | set(head) == {name for name, _ in model.named_parameters()}
    assert sorted(trace.boundaries) == list(trace.boundaries)


def test_blocks_of_resnet50_stand_in_execution_order_with_the_norm_in_the_stem() -> None:
    blocks = trace_model(on_meta("torchvision/resnet50"), ("fc",)).blocks
    stages = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), start=1) for i in range(count)]
    assert [block.name for block in blocks] == ["conv1", *stages]
    assert blocks[0].modules == ("conv1", "bn1", "relu", "maxpool")
    assert blocks[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")


def test_tokens_and_position_embedding_belong_to_the_stem_of_a_vit() -> None:
    blocks = trace_model(on_meta("torchvision/vit_b_16"), ("heads.head",)).blocks
    assert set(blocks[0].parameters) == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert blocks[-1].modules == ("encoder.layers.encoder_layer_11", "encoder.ln")


def test_dropout_acts_with_the_layer_behind_it() -> None:
    blocks = trace_model(on_meta("torchvision/alexnet"), ("classifier.6",)).blocks
    assert blocks[-1].modules == ("classifier.3", "classifier.4", "classifier.5")
    blocks = trace_model(on_meta("torchvision/mobilenet_v2"), ("classifier.1",)).blocks
    assert not any("classifier.0" in block.modules for block in blocks)  # dropout in front of the head is the head's


def test_auxiliary_heads_are_unused() -> None:
    trace = trace_model(on_meta("torchvision/googlenet", aux_logits=True), ("fc",))
    assert {name.split(".")[0] for name in trace.unused} == {"aux1", "aux2"}
    assert len(trace.blocks) == 12


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "densenet121"])
def test_the_trace_computes_what_the_model_computes(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    head = {"test_vit": "head", "test_resnet": "fc"}.get(name, "classifier")
    images = torch.rand(2, 3, 160 if name == "test_vit" else 64, 160 if name == "test_vit" else 64)
    traced = trace_model(model, (head,)).traced
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
    assert dict(traced.named_parameters())[f"{head}.weight"] is model.get_submodule(head).weight


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))])
def test_a_copied_trace_is_the_trace_of_the_copied_model(duplicate: Callable[[Trace], Trace]) -> None:
    trace = trace_model(timm.create_model("test_vit", num_classes=5), ("head",))
    copied = duplicate(trace)
    assert copied.blocks == trace.blocks
    assert copied.model is not trace.model
    assert copied.traced.get_parameter("head.weight") is copied.model.get_parameter("head.weight")


def test_tracing_leaves_every_training_flag_as_it_was() -> None:
    model = timm.create_model("test_resnet").train()
    model.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    trace_model(model, ("fc",))
    assert {name: module.training for name, module in model.named_modules()} == before


class Steps(nn.Module):
    """Three linear layers and a head, with what a subclass does in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(images))))


def test_a_layer_that_runs_again_keeps_what_runs_in_between_in_its_block() -> None:
    class Loop(Steps):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.third(self.first(self.second(self.first(images)))))

    blocks = trace_model(Loop(), ("head",)).blocks
    assert [block.name for block in blocks] == ["first", "third"]
    assert blocks[0].modules == ("first", "second")


def test_a_model_that_branches_on_its_input_is_refused_with_the_reason() -> None:
    class Branch(Steps):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else self.head(images)

    model = Branch().train()
    with pytest.raises(BackboneError, match=r"torch\.fx cannot trace it \(TraceError"):
        trace_model(model, ("head",))
    assert all(module.training for module in model.modules())


def test_dropout_called_as_a_function_between_blocks_is_refused() -> None:
    class Functional(Steps):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            dropped = nn.functional.dropout(self.first(images), 0.5, self.training)
            return self.head(self.second(dropped))

    with pytest.raises(BackboneError, match="dropout as a function"):
        trace_model(Functional(), ("head",))


def test_a_model_that_is_all_head_has_no_blocks() -> None:
    with pytest.raises(BackboneError, match="no layer with weights"):
        trace_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ("1",))
