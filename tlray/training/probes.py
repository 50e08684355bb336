"""Linear probes of one backbone as one stacked head: T heads over the same features, one forward for all of them.

    reason = fusable_suffix(backbone)                                # None, or why its heads cannot be stacked
    freeze(backbone, 0)
    heads = StackedHeads(backbone, num_rows=256)                     # all of them start as the backbone's own head
    losses = loss_by_row(heads.logits(inputs), labels, smoothing)    # (T,)
    gradients = heads.gradients(losses / len(labels))

T heads, called rows; B images of a batch, C classes, D features. Parameters are stacked along a leading dimension T.
No row's loss depends on another row's parameters, so the gradient of the sum of all losses is every row's own, also
where some row's numbers are no longer finite. Training many small models as one goes back to HFTA (Wang et al., 2021).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call, vmap

from tlray.models.backbone import Backbone
from tlray.models.freeze import BatchNorm, parameter_groups
from tlray.models.liveness import parameters_used
from tlray.models.pooled_head import is_reshaping
from tlray.models.split import trainable_suffix
from tlray.process.device import autocast


def fusable_suffix(backbone: Backbone) -> str | None:
    """Why linear probes of this backbone cannot train as one; None where they can."""
    for name, module in trainable_suffix(backbone, len(backbone.blocks)).named_modules():
        if isinstance(module, BatchNorm):
            return f"its classifier normalises by the batch ({name}): every head would need statistics of its own"
    return None


class StackedHeads:
    """The trainable parameters of T heads, and their forward.

    What does not depend on them, dropout in front of the classifier for one, is computed once for all rows, with the
    random numbers that each of them alone would draw. Where a head is one linear layer, as nearly every classifier is,
    all heads are one matrix product; any other is mapped over the rows. Training mode is the model's.
    The backbone has been placed, and frozen but for its head; `fusable_suffix` has nothing against it.
    """

    def __init__(self, backbone: Backbone, num_rows: int) -> None:
        suffix = trainable_suffix(backbone, len(backbone.blocks))
        trainable = {name: p for name, p in suffix.named_parameters() if p.requires_grad}
        groups = parameter_groups(backbone)
        assert all(group.depth == 0 for group in groups), "a linear probe trains its head only"
        decayed = {id(parameter) for group in groups if group.weight_decay for parameter in group.parameters}
        self.decays = {name: id(parameter) in decayed for name, parameter in trainable.items()}
        self.parameters: dict[str, torch.Tensor] = {}  # (T, ...) float32, by name in the suffix
        self.load({name: p.detach().expand(num_rows, *p.shape) for name, p in trainable.items()})
        self._shared, self._own = _split(suffix)
        self.linear = _only_linear(self._own)  # its name, "" where the heads are mapped over the rows

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.parameters.values())))

    def load(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Replace the parameters of all rows, also by those of more or fewer rows."""
        self.parameters = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            for name, tensor in parameters.items()
        }

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone (positions, int64)."""
        self.load({name: tensor.detach()[rows] for name, tensor in self.parameters.items()})

    def shared(self, inputs: tuple[torch.Tensor, ...], precision: str = "float32") -> tuple[Any, ...]:
        """What every head reads, whatever its parameters: the suffix up to the first of them."""
        with torch.no_grad(), autocast(inputs[0].device, precision):
            values = self._shared(*inputs)
        return tuple(_float32(value) for value in values) if precision != "float32" else values

    def logits(self, inputs: tuple[torch.Tensor, ...], precision: str = "float32") -> torch.Tensor:
        """What the suffix takes, (B, ...) each -> (B, T, C).

        The heads themselves multiply in float32, on a GPU in TF32 beside a lower precision: rounding all of their
        weights anew for each step would take longer than it saves, and no loss needs a scale.
        """
        values = self.shared(inputs, precision)
        if not self.linear:
            # a layout of channels last is lost on mapped values, for which pooling would fall back to a slow loop
            values = tuple(value.contiguous() if isinstance(value, torch.Tensor) else value for value in values)
            mapped = vmap(self._logits_of_one, in_dims=(0, None), out_dims=1, randomness="same")
            return mapped(self.parameters, values)
        (features,) = values
        weights = self.parameters[f"{self.linear}.weight"]  # (T, C, D)
        biases = self.parameters.get(f"{self.linear}.bias")
        logits = nn.functional.linear(features, weights.flatten(0, 1), None if biases is None else biases.flatten())
        return logits.unflatten(1, weights.shape[:2])

    def gradients(self, losses: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradient of every row's own loss; losses (T,)."""
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        return dict(zip(self.parameters, gradients, strict=True))

    def _logits_of_one(self, parameters: dict[str, torch.Tensor], values: tuple[Any, ...]) -> torch.Tensor:
        return functional_call(self._own, parameters, values)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def loss_by_row(logits: torch.Tensor, labels: torch.Tensor, smoothing: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of each row, summed over the batch: logits (B, T, C), labels (B,) int64 -> (T,).

    smoothing (T,) in [0, 1), None where no row has any, is nn.CrossEntropyLoss's label_smoothing (Szegedy et al.,
    2016).
    """
    log_probabilities = logits.log_softmax(dim=2)
    at_label = labels[:, None, None].expand(-1, logits.shape[1], 1)
    hard = -log_probabilities.gather(2, at_label).sum(dim=(0, 2))
    if smoothing is None:
        return hard
    soft = -log_probabilities.sum(dim=(0, 2)) / logits.shape[2]
    # not weighted by zero: that would turn an infinite `soft`, which such a row never asked for, into NaN
    return torch.where(smoothing > 0, (1 - smoothing) * hard + smoothing * soft, hard)


def _split(suffix: nn.Module) -> tuple[nn.Module, fx.GraphModule]:
    """What all heads share, and what is a head's own: shared(*inputs) -> values, own(*values) -> logits.

    Whatever does not depend on a trainable parameter is shared.
    """
    assert isinstance(suffix, fx.GraphModule), "split.py makes its sides of graphs"
    nodes = list(suffix.graph.nodes)
    trainable = {id(parameter) for parameter in suffix.parameters() if parameter.requires_grad}
    own: set[fx.Node] = set()
    for node in nodes:
        if not own.isdisjoint(node.all_input_nodes) or not trainable.isdisjoint(parameters_used(suffix, [node])):
            own.add(node)
    crossing = [node for node in nodes if node not in own and not own.isdisjoint(node.users)]
    shared_graph, own_graph = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in own:
            copies[node] = shared_graph.node_copy(node, copies.__getitem__)
    shared_graph.output(tuple(copies[node] for node in crossing))
    copies = {node: own_graph.placeholder(node.name) for node in crossing}
    for node in nodes:
        if node in own:
            copies[node] = own_graph.node_copy(node, copies.__getitem__)
    return (
        fx.GraphModule(suffix, shared_graph, class_name="Shared"),
        fx.GraphModule(suffix, own_graph, class_name="Own"),
    )


def _only_linear(own: fx.GraphModule) -> str:
    """The name of the linear layer that a head consists of; "" where it is something else.

    Identities do not count, nor what gives logits (B, C) the shape that they have already.
    """
    steps = [node for node in own.graph.nodes if node.op not in ("placeholder", "output")]
    modules = {node: own.get_submodule(str(node.target)) for node in steps if node.op == "call_module"}
    rest = [node for node in steps if not isinstance(modules.get(node), nn.Identity)]
    is_linear = bool(rest) and type(modules.get(rest[0])) is nn.Linear and all(map(is_reshaping, rest[1:]))
    return str(rest[0].target) if is_linear else ""
