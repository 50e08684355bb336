"""The ordered blocks of a classification model, found by a coarse torch.fx trace.

    trace = trace_model(model, head=("fc",))
    [block.name for block in trace.blocks]        # conv1, layer1.0, layer1.1, ...

A block is the smallest unit that may be frozen: a residual block, an inception module, a dense layer, a transformer
block. The trace treats every block as one opaque call, so nothing inside it is rewritten; only what the model's own
`forward` does between blocks (pooling, flattening, class token) becomes graph nodes. Execution order is block order.

What belongs to which block:
1. A call of a module with a weight of two or more dimensions starts a block.
2. Norms, layer scales, class tokens and position embeddings join the block before them, at the beginning the stem.
3. So do modules without parameters, up to the first dropout: dropout in front of a block acts with that block, and
   dropout after the last block acts with the head.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import fx, nn

from tlray.errors import BackboneError

# Containers with a forward of their own that hold blocks. timm needs no entry: its models state their layer groups.
OPENED_TYPES = {
    "open_clip.modified_resnet.ModifiedResNet",
    "open_clip.transformer.Transformer",
    "open_clip.transformer.VisionTransformer",
    "pytorchcv.models.common.arch.DualPathSequential",
    "pytorchcv.models.common.arch.MultiOutputSequential",
    "torchvision.models.densenet._DenseBlock",
    "torchvision.models.maxvit.MaxVitBlock",
    "torchvision.models.regnet.AnyStage",
    "torchvision.models.vision_transformer.Encoder",
}
STOCHASTIC_TYPES = ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "DropPath", "StochasticDepth", "DropBlock")
STOCHASTIC_FUNCTIONS = (
    nn.functional.dropout,
    nn.functional.dropout2d,
    nn.functional.alpha_dropout,
    nn.functional.feature_alpha_dropout,
)

Role = Literal["block", "sticky", "stochastic", "glue", "head"]


@dataclass(frozen=True)
class Block:
    """One freezable unit; names are the model's own qualified names."""

    index: int  # 0 is the stem
    name: str  # the module that starts it
    parameters: tuple[str, ...]
    modules: tuple[str, ...]  # modules that it calls, no one inside another


@dataclass(frozen=True)
class Trace:
    """A traced model: `traced` shares the model's parameters and computes what it computes in evaluation mode.

    `boundaries[i]` is the position in `traced.graph.nodes` right after block i: every node before it runs with the
    blocks 0..i, every node from it on with the blocks after them or the head. Where the model has been moved to another
    device, `fx.GraphModule(model, trace.traced.graph)` follows it: buffers of its outer modules are copies here.
    """

    model: nn.Module
    head: tuple[str, ...]
    traced: fx.GraphModule
    blocks: tuple[Block, ...]
    boundaries: tuple[int, ...]
    unused: tuple[str, ...]  # parameters that neither a block nor the head uses (auxiliary heads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles trace their own model anew: a GraphModule's pickle knows nothing of opaque functions."""
        return trace_model, (self.model, self.head)


def trace_model(model: nn.Module, head: tuple[str, ...]) -> Trace:
    """Trace `model` in evaluation mode without changing it; BackboneError with the reason when it cannot be traced.

    `head`: qualified names of the classifier modules. Parameters used after the head's first call count as the head's.
    """
    traced = _trace_coarsely(model, head)
    nodes = list(traced.graph.nodes)
    roles = [_role(model, node, head) for node in nodes]
    head_at = roles.index("head") if "head" in roles else len(nodes) - 1
    starts = _block_starts(nodes, roles, head_at)
    if not starts:
        raise BackboneError("no layer with weights runs before its head")
    boundaries = [_boundary(roles, start, end) for start, end in zip(starts, [*starts[1:], head_at], strict=True)]
    _refuse_functional_dropout(nodes[: boundaries[-1]])
    blocks: list[Block] = []
    owned: set[str] = set()
    for index, (begin, end) in enumerate(pairwise([0, *boundaries])):
        modules, parameters = _owned_by(model, nodes[begin:end], owned)
        owned.update(modules, parameters)
        blocks.append(Block(index, str(nodes[starts[index]].target), tuple(parameters), tuple(modules)))
    _, after = _owned_by(model, nodes[boundaries[-1] :], owned)
    used = owned | set(after)
    return Trace(
        model=model,
        head=head,
        traced=traced,
        blocks=tuple(blocks),
        boundaries=tuple(boundaries),
        unused=tuple(name for name, _ in model.named_parameters() if name not in used),
    )


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the qualified `name` is one of `modules` or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


class _CoarseTracer(fx.Tracer):
    """Steps into `opened` modules only; everything else is one node."""

    proxy_buffer_attributes = True  # or what a forward computes of a buffer is computed now, on today's device

    def __init__(self, opened: set[str], opaque_functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=opaque_functions)
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The images are the only input; further arguments of forward keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def _trace_coarsely(model: nn.Module, head: tuple[str, ...]) -> fx.GraphModule:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        tracer = _CoarseTracer(_opened_modules(model, head), _opaque_functions(model))
        traced = fx.GraphModule(model, tracer.trace(model))
    except Exception as error:  # whatever a model's forward does with a proxy: any exception type may come out
        raise BackboneError(f"torch.fx cannot trace it ({type(error).__name__}: {_first_line(error)})") from None
    finally:
        for module, was_training in training.items():
            module.training = was_training
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _opaque_functions(model: nn.Module) -> tuple[Callable[..., Any], ...]:
    """Functions that timm asks tracers not to look into: they branch on sizes (position embeddings, for one)."""
    if not type(model).__module__.startswith("timm."):
        return ()
    from timm.layers import get_notrace_functions

    return tuple(get_notrace_functions())


def _opened_modules(model: nn.Module, head: tuple[str, ...]) -> set[str]:
    """Qualified names of the modules that hold several blocks: found from the root downwards."""
    above_head = {ancestor for name in head for ancestor in _ancestors(name)}
    groups = _timm_groups(model)
    opened: set[str] = set()

    def visit(name: str, module: nn.Module) -> None:
        kind = type(module)
        if not (
            name in above_head
            or kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
            or f"{kind.__module__}.{kind.__qualname__}" in OPENED_TYPES
            or len(groups.get(name, ())) > 1
        ):
            return
        opened.add(name)
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return opened - set(head)


def _timm_groups(model: nn.Module) -> dict[str, set[int]]:
    """For each module of a timm model, the layer groups (timm's own, for layer decay) that its parameters are in."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return {}
    from timm.models import group_parameters

    try:
        group_of = group_parameters(model, matcher(coarse=False), reverse=True)
    except Exception:  # a few models' matchers do not fit their parameters: their blocks are coarser, and still right
        return {}
    groups: dict[str, set[int]] = {}
    for parameter, group in group_of.items():
        for ancestor in _ancestors(parameter):
            groups.setdefault(ancestor, set()).add(group)
    return groups


def _role(model: nn.Module, node: fx.Node, head: tuple[str, ...]) -> Role:
    if node.op == "call_module":
        target = str(node.target)
        if is_inside(target, head):
            return "head"
        module = model.get_submodule(target)
        dimensions = [parameter.dim() for parameter in module.parameters()]
        if dimensions:
            return "block" if max(dimensions) >= 2 else "sticky"
        return "stochastic" if type(module).__name__.startswith(STOCHASTIC_TYPES) else "glue"
    if node.op == "call_function" and node.target in STOCHASTIC_FUNCTIONS:
        return "stochastic"
    if node.op == "get_attr" and isinstance(_value(model, node), nn.Parameter):
        return "sticky"
    return "glue"


def _block_starts(nodes: list[fx.Node], roles: list[Role], head_at: int) -> list[int]:
    """Positions where blocks start; a module called again later keeps all that runs in between in its block."""
    last_call = {node.target: position for position, node in enumerate(nodes) if node.op == "call_module"}
    starts: list[int] = []
    busy_until = -1
    for position in range(head_at):
        if roles[position] == "block":
            if position > busy_until:
                starts.append(position)
            busy_until = max(busy_until, last_call[nodes[position].target])
    return starts


def _boundary(roles: list[Role], start: int, end: int) -> int:
    """Where the block that starts at `start` ends: before the first dropout behind its last weights, or at `end`."""
    last_weights = max(position for position in range(start, end) if roles[position] in ("block", "sticky"))
    behind = range(last_weights + 1, end)
    return next((position for position in behind if roles[position] == "stochastic"), end)


def _owned_by(model: nn.Module, nodes: list[fx.Node], owned: set[str]) -> tuple[list[str], list[str]]:
    """Modules and parameters that `nodes` use and nobody has `owned` before, in order of first use."""
    called = dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module")
    modules = [name for name in called if name not in owned]
    used = {id(_value(model, node)) for node in nodes if node.op == "get_attr"}
    used.update(id(parameter) for name in modules for parameter in model.get_submodule(name).parameters())
    # by identity, not by name: a module that several blocks share goes by the name of the first of them
    parameters = [name for name, parameter in model.named_parameters() if id(parameter) in used and name not in owned]
    return modules, parameters


def _value(model: nn.Module, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(model)


def _refuse_functional_dropout(nodes: list[fx.Node]) -> None:
    """Dropout as a function obeys the flag of the model around it, so it would stay active in frozen blocks."""
    for node in nodes:
        if node.op == "call_function" and node.target in STOCHASTIC_FUNCTIONS:
            raise BackboneError("it calls dropout as a function between its blocks, which freezing cannot switch off")


def _ancestors(name: str) -> list[str]:
    """Qualified names of the modules around `name`, from the root ("")."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
