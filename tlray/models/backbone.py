"""An id of the catalogue -> a model with a new head, its ordered blocks and the preprocessing of its weights.

backbone = build_backbone(BackboneConfig(id="torchvision/mobilenet_v2"), num_classes=2, seed=0)
model, preprocessing, labels = load_classifier("torchvision/mobilenet_v2")     # with its own ImageNet head
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from tlray.catalogue import ModelId, Preprocessing, default_preprocessing, known_tags, resolve_id, split_id
from tlray.catalogue.libraries import library
from tlray.config import BackboneConfig
from tlray.errors import BackboneError
from tlray.models.blocks import Block, Trace, is_inside, trace_model
from tlray.models.pooled_head import pool_first
from tlray.models.weights.load import load_weights
from tlray.models.weights.metadata import check_architecture, preprocessing_of
from tlray.models.weights.read import read_weights

__all__ = ["Backbone", "Block", "build_backbone", "find_head", "load_classifier"]

HEAD_STD = 0.01  # of a new head's weights, as torchvision draws MobileNet's
SET_BY_TLRAY = ("num_classes", "weights", "pretrained", "progress", "image_size", "img_size")


@dataclass(frozen=True)
class Backbone:
    """A model ready to be trained on other classes: images (B, 3, H, W) float32 -> logits (B, num_classes)."""

    id: str
    model: nn.Module
    head: tuple[str, ...]  # qualified names of the classifier modules; more than one in distilled models
    blocks: tuple[Block, ...]  # from the stem to the head, without the head
    blocks_error: str | None  # why there are no blocks
    preprocessing: Preprocessing
    weights: str  # what was loaded: a tag, a URI, or "none"
    notes: tuple[str, ...] = ()  # of the weights' names, for people
    trace: Trace | None = field(default=None, repr=False, compare=False)  # what the blocks were found in

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that the model's evaluation never reads; they never train."""
        return self.trace.unused if self.trace is not None else ()

    def in_head(self, name: str) -> bool:
        """Whether the parameter or module called `name` belongs to the classifier."""
        return is_inside(name, self.head)


def build_backbone(config: BackboneConfig, num_classes: int, *, seed: int = 0, as_published: bool = False) -> Backbone:
    """The backbone that `config` describes, on the CPU, equal for equal seeds; leaves the caller's RNG as it was.

    `as_published`: with the library's kind of classifier, also where a new one is pooled_head.py's.
    BackboneError: unknown id, weights that cannot be had or do not fit, options or an input size the model refuses.
    """
    backbone_id = resolve_id(config.id)
    model_id = split_id(backbone_id)
    _check_options(config)
    preprocessing = default_preprocessing(backbone_id)
    usual_size = preprocessing.input_size
    file = None if config.weights in ("pretrained", "none") else read_weights(config.weights)
    if file is not None:
        check_architecture(file, model_id)
        preprocessing = preprocessing_of(file, preprocessing)
    if config.input_size is not None:
        preprocessing = preprocessing.with_input_size(config.input_size)

    source = config.weights if file is None else "file"
    with _seeded(seed):
        model = _construct(model_id, source, preprocessing.input_size[0], config.options, num_classes)
        head = find_head(model, backbone_id)
        if not hasattr(model, "get_classifier"):  # timm's models, which have it, are built with num_classes outputs
            _replace_head(model, head[0], num_classes)
        published = head
        head = head if as_published else pool_first(model, head, num_classes)
        _initialise_head(model, head)
    notes = load_weights(model, file, published, backbone_id).notes if file is not None else ()
    if preprocessing.input_size != usual_size or config.options or head != published:
        _check_forward(model, preprocessing.input_size, num_classes, backbone_id)
    trace, blocks_error = None, None
    try:
        trace = trace_model(model, head)
    except BackboneError as error:
        blocks_error = str(error)
    return Backbone(
        id=backbone_id,
        model=model,
        head=head,
        blocks=trace.blocks if trace is not None else (),
        blocks_error=blocks_error,
        preprocessing=preprocessing,
        weights=file.uri if file is not None else _weights_name(model_id, config.weights),
        notes=notes,
        trace=trace,
    )


def load_classifier(id: str, weights: str = "pretrained") -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """A model with the head and the labels that its weights were trained with, in evaluation mode.

    `weights`: "pretrained", or the path or URI of a weights file that has the head. BackboneError as above, and when
    no labels are known for the weights.
    """
    if weights == "none":
        raise BackboneError(f"{id}: random weights predict nothing; give weights: pretrained, or a file")
    backbone_id = resolve_id(id)
    model_id = split_id(backbone_id)
    labels = library(model_id.library).labels(model_id.name, model_id.tag)
    preprocessing = default_preprocessing(backbone_id)
    if weights == "pretrained":
        with _seeded(0):
            model = _construct(model_id, weights, preprocessing.input_size[0], {}, len(labels))
        return model.eval(), preprocessing, labels
    file = read_weights(weights)
    check_architecture(file, model_id)
    preprocessing = preprocessing_of(file, preprocessing)
    with _seeded(0):
        model = _construct(model_id, "file", preprocessing.input_size[0], {}, len(labels))
    if not load_weights(model, file, find_head(model, backbone_id), backbone_id).has_head:
        raise BackboneError(f"{file.uri} has no classifier with the {len(labels)} classes of {backbone_id}")
    return model.eval(), preprocessing, labels


def _construct(model_id: ModelId, source: str, size: int, options: dict[str, Any], num_classes: int) -> nn.Module:
    """The library's model; `source` is pretrained, none, or file (whose weights are loaded afterwards).

    Some libraries' models come with the head of their weights, others with `num_classes` outputs.
    """
    if source == "pretrained" and not known_tags(model_id.library, model_id.name):
        raise BackboneError(f"{model_id.arch} has no published weights; give weights: a path or URI, or none")
    home = library(model_id.library)
    try:
        return home.construct(model_id.name, model_id.tag, source, size, options, num_classes)
    except BackboneError:
        raise
    except OSError as error:  # both libraries' download failures, HTTP errors included
        raise BackboneError(
            f"the weights of {model_id.arch} cannot be downloaded ({type(error).__name__}: {_first_line(error)}); "
            "fetch them once where there is a network and copy the cache (TORCH_HOME for torchvision, HF_HOME for "
            "timm), or give weights: the path or URI of a file"
        ) from None
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"{model_id.arch} cannot be built for {size} pixels with options {options}: {_first_line(error)}"
        ) from None


def find_head(model: nn.Module, backbone_id: str) -> tuple[str, ...]:
    """Qualified names of the classifier modules: timm says which, in torchvision it is the last linear layer."""
    names = {module: name for name, module in model.named_modules()}
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is not None:
        classifiers = get_classifier()
        found = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)
        head = tuple(names[module] for module in found if isinstance(module, nn.Module) and list(module.parameters()))
    else:
        # SqueezeNet classifies with a 1x1 convolution and has no linear layer
        linear = [name for module, name in names.items() if isinstance(module, nn.Linear)]
        convolutions = [name for module, name in names.items() if isinstance(module, nn.Conv2d)]
        head = tuple((linear or convolutions)[-1:])
    if not head:
        raise BackboneError(f"{backbone_id} has no classifier that could be replaced; choose another backbone")
    return head


def _replace_head(model: nn.Module, name: str, num_classes: int) -> None:
    old = model.get_submodule(name)
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=bias)
    else:
        assert isinstance(old, nn.Conv2d), f"{name} is a {type(old).__name__}"
        assert old.kernel_size == (1, 1), f"{name} is no 1x1 convolution"
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1, bias=bias)
        model.num_classes = cast(Any, num_classes)  # SqueezeNet keeps the number beside it
    model.set_submodule(name, new)


def _initialise_head(model: nn.Module, head: tuple[str, ...]) -> None:
    """The same small random weights for every architecture.

    The libraries' own choices differ, and timm's EfficientNet family draws from +-1/sqrt(classes): with two classes a
    linear probe then spends its epochs on forgetting where it started.
    """
    for name in head:
        for parameter in model.get_submodule(name).parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=HEAD_STD)
            else:
                nn.init.zeros_(parameter)


def _check_forward(model: nn.Module, size: tuple[int, int], num_classes: int, backbone_id: str) -> None:
    """BackboneError unless the model takes images of this size; computed on the meta device, so without arithmetic."""
    tensors = [*model.parameters(), *model.buffers()]
    as_meta: dict[int, Any] = {}
    for tensor in tensors:
        meta = tensor.detach().to("meta")
        as_meta[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    shadow = copy.deepcopy(model, as_meta).eval()
    try:
        with torch.no_grad():
            logits = shadow(torch.empty(2, 3, *size, device="meta"))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise BackboneError(
            f"{backbone_id} does not take images of {size[0]} x {size[1]} pixels ({_first_line(error)}); "
            "set another input_size, or leave it out"
        ) from None
    assert tuple(logits.shape) == (2, num_classes), f"{backbone_id} gives {tuple(logits.shape)}"


def _check_options(config: BackboneConfig) -> None:
    for key in SET_BY_TLRAY:
        if key in config.options:
            instead = "input_size" if key in ("image_size", "img_size") else "weights"
            hint = "the classes come from the data" if key == "num_classes" else f"use {instead}"
            raise BackboneError(f"{config.id}: options.{key} is set by tlray; {hint}")


def _weights_name(model_id: ModelId, weights: str) -> str:
    if weights == "none":
        return weights
    return model_id.tag or known_tags(model_id.library, model_id.name)[0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a CPU generator seeded with `seed`, and put the caller's state back; no GPU's generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
