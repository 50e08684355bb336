"""What is known of one set of weights, or of an architecture that has none: the fields of every listing."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One set of weights, or an architecture without any; None where nobody publishes a figure."""

    id: str  # library/name.tag, or library/name where there are no weights
    library: str = ""
    name: str = ""
    tag: str | None = None
    weights: tuple[str, ...] = ()  # tags of the architecture that can be downloaded, the default first
    family: str | None = None  # the library's module that defines the architecture
    input_size: int | None = None  # pixels, height
    num_classes: int | None = None  # outputs of the weights' own head; 0 where they have none
    num_params: int | None = None  # with the weights' own head
    gflops: float | None = None  # multiply-adds of one image of input_size, in 10^9, as torchvision and papers count
    size_mb: float | None = None  # download, MiB
    size_estimated: bool = False  # size_mb is 4 bytes a parameter, not a published size
    feature_width: int | None = None  # what the classifier takes
    num_blocks: int | None = None  # what can be frozen one by one, without the head; None: it cannot be split
    top1: float | None = None  # ImageNet-1k validation accuracy, percent
    top5: float | None = None
    top_source: str | None = None  # who published the accuracy, and at which image size
    licence: str | None = None
    licence_binds: bool = False  # it must be accepted by name in the configuration
    trained_on: str | None = None  # data sets in the order of training, such as in21k+in1k
    usable: bool = True  # tlray can train it; `note` says why not
    extra: str | None = None  # pip extra that brings the library
    note: str | None = None

    @property
    def arch(self) -> str:
        return f"{self.library}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
