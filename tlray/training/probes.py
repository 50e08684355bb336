"""Linear probes of one backbone as one stacked head: T heads over the same features, one forward for all of them.

    reason = fusable_suffix(suffix)                                  # None, or why its heads cannot be stacked
    heads = StackedHeads(backbone, suffix, num_rows=256)             # all of them start as the backbone's own head
    losses = loss_by_row(heads.logits(inputs), labels, smoothing)    # (T,)
    gradients = heads.gradients(losses / len(labels))

T heads, called rows; B images of a batch, C classes, D features. Parameters are stacked along a leading dimension T.
No row's loss depends on another row's parameters, so the gradient of the sum of all losses is every row's own, also
where some row's numbers are no longer finite. Training many small models as one goes back to HFTA (Wang et al., 2021).
"""

from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.func import functional_call, vmap

from tlray.backbone import Backbone
from tlray.freeze import BatchNorm, parameter_groups


def fusable_suffix(suffix: nn.Module) -> str | None:
    """Why the heads behind these features cannot train as one; None where they can."""
    for name, module in suffix.named_modules():
        if isinstance(module, BatchNorm):
            return f"its classifier normalises by the batch ({name}): every head would need statistics of its own"
    return None


class StackedHeads:
    """The trainable parameters of T heads, and their forward.

    Where the suffix ends in a linear layer that holds all of them, as nearly every classifier does, what stands in
    front of it is computed once and all heads are one matrix product. Any other suffix is mapped over the rows. Random
    numbers (dropout) are drawn once for all rows, as each of them alone would draw them. Training mode is the model's.
    """

    def __init__(self, backbone: Backbone, suffix: nn.Module, num_rows: int) -> None:
        assert fusable_suffix(suffix) is None, "the caller has asked"
        trainable = {name: p for name, p in suffix.named_parameters() if p.requires_grad}
        groups = parameter_groups(backbone)
        assert all(group.depth == 0 for group in groups), "a linear probe trains its head only"
        decayed = {id(parameter) for group in groups if group.weight_decay for parameter in group.parameters}
        self.suffix = suffix
        self.decays = {name: id(parameter) in decayed for name, parameter in trainable.items()}
        self.parameters: dict[str, torch.Tensor] = {}  # (T, ...) float32, by name in the suffix
        self.load({name: p.detach().expand(num_rows, *p.shape) for name, p in trainable.items()})
        self._front, self._linear = _split_linear(suffix, set(trainable))

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

    def logits(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """What the suffix takes, (B, ...) float32 each -> (B, T, C)."""
        if self._front is None:
            mapped = vmap(self._logits_of_one, in_dims=(0, None), out_dims=1, randomness="same")
            return mapped(self.parameters, inputs)
        with torch.no_grad():
            features = self._front(*inputs)
        weights = self.parameters[f"{self._linear}.weight"]  # (T, C, D)
        biases = self.parameters.get(f"{self._linear}.bias")
        logits = nn.functional.linear(features, weights.flatten(0, 1), None if biases is None else biases.flatten())
        return logits.unflatten(1, weights.shape[:2])

    def gradients(self, losses: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradient of every row's own loss; losses (T,)."""
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        return dict(zip(self.parameters, gradients, strict=True))

    def _logits_of_one(self, parameters: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional_call(self.suffix, parameters, inputs)


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


def _split_linear(suffix: nn.Module, trainable: set[str]) -> tuple[nn.Module | None, str]:
    """What stands in front of the linear layer that the suffix ends in, and its name.

    (None, "") where the suffix ends otherwise, or has trainable parameters elsewhere.
    """
    assert isinstance(suffix, fx.GraphModule), "split.py makes its sides of graphs"
    nodes = list(suffix.graph.nodes)
    last = nodes[-1].all_input_nodes[0]
    while last.op == "call_module" and isinstance(suffix.get_submodule(str(last.target)), nn.Identity):
        last = last.all_input_nodes[0]
    if last.op != "call_module" or type(suffix.get_submodule(str(last.target))) is not nn.Linear:
        return None, ""
    name = str(last.target)
    held = {f"{name}.{inner}" for inner, _ in suffix.get_submodule(name).named_parameters()}
    if held != trainable or sum(node.target == name for node in nodes) > 1:
        return None, ""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: nodes.index(last)]:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last.all_input_nodes[0]])
    return fx.GraphModule(suffix, graph, class_name="Front"), name
