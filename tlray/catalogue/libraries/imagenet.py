"""What weights trained on ImageNet-1k have in common: normalisation, class names, the folder of downloaded files."""

from pathlib import Path

MEAN = (0.485, 0.456, 0.406)  # of values in 0..1, R, G, B
STD = (0.229, 0.224, 0.225)
NUM_CLASSES = 1000


def labels() -> tuple[str, ...]:
    """The 1000 class names in the order of the logits, which is that of the sorted WordNet ids."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def download_folder() -> Path:
    """Where torchvision keeps its downloads too (TORCH_HOME), so that one folder is copied to a machine offline."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"
