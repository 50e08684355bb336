"""What is alive at each position of a trace, and what may be said of its values: shapes, constants, writes in place.

live = live_at(nodes, position)                       # nodes whose values are still needed there
values = values_of(trace, input_size=(224, 224))      # shapes of all values, found without arithmetic
"""

import copy
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from tlray.errors import BackboneError
from tlray.models.blocks import Trace


@dataclass(frozen=True)
class Values:
    """What is known of the value of each node, by the node's name."""

    shapes: dict[str, tuple[int, ...]]  # for one image
    numbers: dict[str, Any]  # of values that are none but numbers and the same for any images: heights, widths
    problems: dict[str, str]  # why it may not cross a cut; a name is in one of these three
    writes: dict[str, tuple[int, ...]]  # positions of the nodes that write into it


_VALUES: WeakKeyDictionary[fx.GraphModule, dict[tuple[int, int], Values]] = WeakKeyDictionary()  # by input size


def values_of(trace: Trace, input_size: tuple[int, int]) -> Values:
    """Found by three runs on the meta device, without arithmetic, once for a trace and a size of its images in pixels.

    Two batch sizes tell which dimension is the batch. The third run is in training mode, where dropout may be in place.
    BackboneError when the model does not run without the contents of its tensors.
    """
    known = _VALUES.setdefault(trace.traced, {})
    if input_size not in known:
        known[input_size] = _recorded(trace, input_size)
    return known[input_size]


def _recorded(trace: Trace, input_size: tuple[int, int]) -> Values:
    graph, shadow = trace.traced.graph, _on_meta(trace.model)
    dtype = next(shadow.parameters()).dtype
    images = {count: torch.empty(count, 3, *input_size, dtype=dtype, device="meta") for count in (2, 3)}
    try:
        two = _Recorder(shadow.eval(), graph).record(images[2])
        three = _Recorder(shadow, graph).record(images[3])
        in_training = _Recorder(shadow.train(), graph).record(images[2])
    except Exception as error:  # whatever a model's forward does not like about tensors without contents
        first_line = next(iter(str(error).splitlines()), "")[:200]
        raise BackboneError(f"it does not run on the meta device ({type(error).__name__}: {first_line})") from None
    problems: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    numbers: dict[str, Any] = {}
    for node in graph.nodes:
        value = two.values[node]
        problem = _problem(node.name, value, three.values[node])
        if problem is None:
            shapes[node.name] = tuple(value.shape[1:])
        elif _is_number(value) and value == three.values[node]:
            numbers[node.name] = tuple(value) if isinstance(value, torch.Size) else value
        else:
            problems[node.name] = problem
    writes = {node.name: tuple(positions) for node, positions in in_training.writes.items()}
    return Values(shapes, numbers, problems, writes)


def _problem(name: str, two: Any, three: Any) -> str | None:
    if not isinstance(two, torch.Tensor):
        return f"its value {name} is a {type(two).__name__}, not one tensor"
    if not two.is_floating_point():
        return f"its value {name} is {two.dtype}, not floating-point"
    if two.shape[:1] != (2,) or three.shape[:1] != (3,) or two.shape[1:] != three.shape[1:]:
        return f"its value {name} is {tuple(two.shape)} for 2 images and {tuple(three.shape)} for 3, not a row an image"
    return None


def _is_number(value: Any) -> bool:
    """Or several, or nothing."""
    if isinstance(value, tuple | list):
        return all(_is_number(inner) for inner in value)
    return value is None or isinstance(value, bool | int | float)


class _Recorder(fx.Interpreter):
    """Runs a graph over a module, keeps every value and notices who writes into which."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.values: dict[fx.Node, Any] = {}
        self.writes: dict[fx.Node, list[int]] = {}

    def record(self, images: torch.Tensor) -> Self:
        with torch.no_grad():
            self.run(images)
        return self

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Plain lists, as in the code that a graph becomes: some modules write into those they are given."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return _with_plain_lists(tuple(args)), _with_plain_lists(dict(kwargs))

    def run_node(self, n: fx.Node) -> Any:
        tensors = {node: value for node, value in self.values.items() if isinstance(value, torch.Tensor)}
        versions = {node: value._version for node, value in tensors.items()}  # views share it with their base
        result = super().run_node(n)
        for node, value in tensors.items():
            if value._version != versions[node]:
                self.writes[node].append(len(self.values))
        self.values[n] = result
        self.writes[n] = []
        return result


def _with_plain_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_plain_lists(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_plain_lists(inner) for inner in value]
    return tuple(_with_plain_lists(inner) for inner in value) if type(value) is tuple else value


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without contents."""
    as_meta: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        meta = tensor.detach().to("meta")
        as_meta[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(model, as_meta)


def live_at(nodes: list[fx.Node], position: int) -> list[fx.Node]:
    """The nodes before `position` that are used from there on and depend on the images; constants are made anew."""
    constant: set[fx.Node] = set()
    for node in nodes[:position]:
        if node.op != "placeholder" and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    behind = set(nodes[position:])
    return [node for node in nodes[:position] if node not in constant and not behind.isdisjoint(node.users)]


def needed_for(roots: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes that `roots` are computed from, themselves included; `stop` and what lies before it left out."""
    needed: set[fx.Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node not in needed and node not in stop:
            needed.add(node)
            todo += node.all_input_nodes
    return needed


def parameters_used(model: nn.Module, nodes: Iterable[fx.Node]) -> set[int]:
    """Identities of the parameters that `nodes` use themselves."""
    used: set[int] = set()
    for node in nodes:
        if node.op == "call_module":
            used.update(id(parameter) for parameter in model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(model)
            used.update([id(value)] if isinstance(value, nn.Parameter) else [])
    return used
