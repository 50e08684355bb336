"""A classifier that scores every place of the last maps becomes one that pools the maps first, and then is linear.

    head = pool_first(model, ("classifier.1",), num_classes=2)      # -> ("classifier.1.3",)

SqueezeNet ends with dropout, a 1x1 convolution, a ReLU and average pooling (Iandola et al., arXiv:1602.07360), DarkNet
with a convolution, a leaky ReLU and pooling. With a new head most of these logits are below zero, where a ReLU passes
no gradient: at usual rates they never come back. Average pooling and a linear layer compute the same without the ReLU,
cannot die, and need one number a channel of each image instead of one for every place of its maps.
"""

from torch import fx, nn

from tlray.errors import BackboneError
from tlray.models.blocks import trace_model

RESHAPING = ("size", "view", "flatten", "reshape", "getitem")  # these take (B, C) as they take (B, C, 1, 1)
HARMLESS = (nn.Identity, nn.Flatten, nn.Dropout)
LINEAR = 3  # place of the linear layer in the new head


def pool_first(model: nn.Module, head: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """Replace such a classifier in place -> the names of the classifier's modules, `head` itself where it is another.

    Dropout in front of the classifier stands behind the pooling from then on, as in other networks.
    """
    conv = model.get_submodule(head[0])
    if len(head) > 1 or not isinstance(conv, nn.Conv2d):
        return head
    try:
        nodes = list(trace_model(model, head).traced.graph.nodes)
    except BackboneError:  # it is trained as it is, and whole
        return head
    place = next(index for index, node in enumerate(nodes) if node.op == "call_module" and node.target == head[0])
    behind = _modules_behind(model, nodes[place + 1 :])
    if behind is None or all(isinstance(model.get_submodule(name), HARMLESS) for name in behind):
        return head
    dropout: nn.Module = nn.Identity()
    (source,) = nodes[place].all_input_nodes
    if source.op == "call_module" and isinstance(model.get_submodule(str(source.target)), nn.Dropout):
        behind.append(str(source.target))
        dropout = model.get_submodule(str(source.target))
    for name in behind:
        model.set_submodule(name, nn.Identity())
    linear = nn.Linear(conv.in_channels, num_classes)
    model.set_submodule(head[0], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, linear))
    return (f"{head[0]}.{LINEAR}",)


def is_reshaping(node: fx.Node) -> bool:
    """Whether what runs behind a classifier (B, C) leaves it as it is: maps of one place become rows there."""
    return node.op != "call_module" and getattr(node.target, "__name__", node.target) in RESHAPING


def _modules_behind(model: nn.Module, nodes: list[fx.Node]) -> list[str] | None:
    """The modules that run behind the classifier; None where something else does that cannot be left out."""
    found: list[str] = []
    for node in nodes:
        if node.op == "call_module" and not list(model.get_submodule(str(node.target)).parameters()):
            found.append(str(node.target))
        elif node.op != "output" and not is_reshaping(node):
            return None
    return found
