"""A backbone cut in two at a block boundary: a frozen prefix, computed once an image, and the suffix that trains.

    cut = find_cut(backbone, num_frozen=12)
    prefix = frozen_prefix(backbone, [cut])               # images (B, 3, H, W) -> ((value (B, ...), ...),)
    suffix = trainable_suffix(backbone, num_frozen=12)    # *values -> logits (B, C)
    logits = suffix(*prefix(images)[0])                   # what backbone.model(images) gives in evaluation mode

Both sides hold the model's own modules and parameters under their own names: freezing, training and loading weights on
the model show on them. A cut may lie anywhere between the last weights of its last frozen block and that block's end;
of these positions the one with the fewest numbers alive is taken, because they are what is stored for every image.

Move the model to its device, change its memory format and convert its norms before splitting: buffers and modules that
these replace in the model stay as they were in sides that exist already.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import fx, nn

from tlray.errors import BackboneError
from tlray.models.backbone import Backbone
from tlray.models.blocks import STOCHASTIC_FUNCTIONS, Trace
from tlray.models.liveness import Values, live_at, needed_for, parameters_used, values_of

SPLIT_VERSION = 2  # part of every activation's key: raised when a prefix would compute something else (2: SqueezeNet)


class SplitError(BackboneError):
    """A backbone that cannot be cut where it was asked for; the message says why."""


@dataclass(frozen=True)
class Cut:
    """Where a backbone is cut, and what crosses the cut."""

    num_frozen: int  # the blocks before it, 1 to all
    position: int  # in the nodes of backbone.trace.traced.graph: those before it are the prefix's
    values: tuple[str, ...]  # names of the nodes whose values cross it
    shapes: tuple[tuple[int, ...], ...]  # of each value, for one image
    num_elements: int  # of all values together, for one image


class FrozenPrefix(nn.Module):
    """Images (B, 3, H, W) float32 -> for each cut the values that cross it, each (B, ...).

    A pure function of the image: every call runs in evaluation mode and without gradients, whatever `train()` has
    been called on the model that shares its modules, and puts their modes back afterwards. `train()` on the prefix
    itself therefore does nothing. Values that several cuts share are one tensor; do not write into them.
    """

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers = layers
        self.training = False

    def train(self, mode: bool = True) -> Self:
        return self

    def forward(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        training = [module for module in self.layers.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                return self.layers(images)
        finally:
            for module in training:
                module.training = True


def find_cut(backbone: Backbone, num_frozen: int) -> Cut:
    """The cut behind the first `num_frozen` blocks that lets the fewest numbers cross; of equal ones the latest.

    SplitError when no value may cross there: it must be one floating-point tensor with the images as dimension 0, and
    no parameter of a frozen block may be needed behind the cut.
    """
    trace = _traced(backbone)
    if not 1 <= num_frozen <= len(trace.blocks):
        raise SplitError(f"{backbone.id} has {len(trace.blocks)} blocks; {num_frozen} of them cannot be a prefix")
    nodes = list(trace.traced.graph.nodes)
    values = _values(backbone)
    best: Cut | None = None
    reason = ""
    for position in range(_behind_weights(trace, nodes, num_frozen), trace.boundaries[num_frozen - 1] + 1):
        live = _crossing(backbone, nodes, position)
        problem = _shared_parameter(trace, nodes, position, num_frozen)
        problem = problem or next((values.problems[node.name] for node in live if node.name in values.problems), None)
        if problem is not None:
            reason = problem
            continue
        shapes = tuple(values.shapes[node.name] for node in live)
        num_elements = sum(math.prod(shape) for shape in shapes)
        if best is None or num_elements <= best.num_elements:
            best = Cut(num_frozen, position, tuple(node.name for node in live), shapes, num_elements)
    if best is None:
        raise SplitError(
            f"{backbone.id} cannot be split behind block {num_frozen} of {len(trace.blocks)} "
            f"({trace.blocks[num_frozen - 1].name}): {reason}"
        )
    return best


def frozen_prefix(backbone: Backbone, cuts: Sequence[Cut]) -> FrozenPrefix:
    """All `cuts` (of `find_cut`) out of one forward, in their order; nothing behind the last of them is computed.

    SplitError when a cut is not one of this backbone.
    """
    trace = _traced(backbone)
    nodes = list(trace.traced.graph.nodes)
    by_name = {node.name: node for node in nodes}
    for cut in cuts:
        if tuple(node.name for node in _crossing(backbone, nodes, cut.position)) != cut.values:
            raise SplitError(f"{backbone.id} has no cut at {cut.position} with {', '.join(cut.values)}")
    end = max(cut.position for cut in cuts)
    writes = _values(backbone).writes
    needed = needed_for((by_name[name] for cut in cuts for name in cut.values), stop=set())
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    kept: dict[tuple[int, str], fx.Node] = {}  # position and name of a value -> what stands for it in the output
    for position, node in enumerate(nodes[:end], start=1):
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
        for name in dict.fromkeys(name for cut in cuts if cut.position == position for name in cut.values):
            value = copies[by_name[name]]
            overwritten = any(position <= write < end for write in writes[name])
            kept[position, name] = graph.call_function(torch.clone, (value,)) if overwritten else value
    graph.output(tuple(tuple(kept[cut.position, name] for name in cut.values) for cut in cuts))
    return FrozenPrefix(fx.GraphModule(backbone.model, graph, class_name="Prefix"))


def trainable_suffix(backbone: Backbone, num_frozen: int) -> nn.Module:
    """What runs behind `find_cut(backbone, num_frozen)`: its values, each (B, ...) float32 -> logits (B, C).

    It shares modules and parameters with the model, so that requires_grad and training modes set there hold here, and
    those set here hold there. It never writes into the values. SplitError as in `find_cut`.
    """
    cut = find_cut(backbone, num_frozen)
    nodes = list(_traced(backbone).traced.graph.nodes)
    values = _values(backbone)
    live = live_at(nodes, cut.position)
    needed = needed_for([nodes[-1]], stop=set(live))
    graph = fx.Graph()
    crossing = [node for node in live if node.name in cut.values]
    copies: dict[fx.Node, Any] = {node: graph.placeholder(node.name) for node in crossing}
    copies.update((node, values.numbers[node.name]) for node in live if node not in crossing)
    for node in crossing:
        if any(write >= cut.position for write in values.writes[node.name]):
            copies[node] = graph.call_function(torch.clone, (copies[node],))
    for node in nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    suffix = fx.GraphModule(backbone.model, graph, class_name="Suffix")
    _let_dropout_follow(suffix, backbone.model)
    return suffix


class _ModelsDropout(nn.Module):
    """Dropout that the model's forward calls as a function: on while the module that calls it is in training mode.

    The trace was made in evaluation mode and has it switched off for good.
    """

    def __init__(self, function: Callable[..., torch.Tensor], p: float, caller: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.p = p
        self.caller = (caller,)  # in a tuple: its parameters are not this module's
        self.training = caller.training

    def train(self, mode: bool = True) -> Self:
        self.caller[0].training = mode
        return super().train(mode)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.function(values, p=self.p, training=self.caller[0].training)


def _let_dropout_follow(suffix: fx.GraphModule, model: nn.Module) -> None:
    for node in list(suffix.graph.nodes):
        if node.op != "call_function" or node.target not in STOCHASTIC_FUNCTIONS:
            continue
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        arguments.apply_defaults()
        modules_around = list(node.meta.get("nn_module_stack", ()))  # names, the innermost last; none for the model
        caller = model.get_submodule(modules_around[-1]) if modules_around else model
        name = f"model_{node.name}"
        suffix.add_submodule(name, _ModelsDropout(node.target, arguments.arguments["p"], caller))
        with suffix.graph.inserting_before(node):
            node.replace_all_uses_with(suffix.graph.call_module(name, (arguments.arguments["input"],)))
        suffix.graph.erase_node(node)
    suffix.recompile()


def _values(backbone: Backbone) -> Values:
    try:
        return values_of(_traced(backbone), backbone.preprocessing.input_size)
    except BackboneError as error:
        raise SplitError(f"{backbone.id} cannot be split: {error}") from None


def _traced(backbone: Backbone) -> Trace:
    if backbone.trace is None:
        raise SplitError(f"{backbone.id} cannot be split: {backbone.blocks_error}")
    return backbone.trace


def _behind_weights(trace: Trace, nodes: list[fx.Node], num_frozen: int) -> int:
    """The first position behind all weights of the last frozen block."""
    begin = trace.boundaries[num_frozen - 2] if num_frozen > 1 else 0
    span = range(begin, trace.boundaries[num_frozen - 1])
    return 1 + max(position for position in span if parameters_used(trace.model, [nodes[position]]))


def _crossing(backbone: Backbone, nodes: list[fx.Node], position: int) -> list[fx.Node]:
    """What is alive at `position` and has to be handed over; heights and widths are known for the input size."""
    numbers = _values(backbone).numbers
    return [node for node in live_at(nodes, position) if node.name not in numbers]


def _shared_parameter(trace: Trace, nodes: list[fx.Node], position: int, num_frozen: int) -> str | None:
    behind = parameters_used(trace.model, needed_for([nodes[-1]], stop=set(live_at(nodes, position))))
    frozen = {name for block in trace.blocks[:num_frozen] for name in block.parameters}
    shared = next((name for name, p in trace.model.named_parameters() if name in frozen and id(p) in behind), None)
    return f"its parameter {shared} is used on both sides" if shared is not None else None
