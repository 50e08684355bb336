"""A smallest and a full configuration, and the message with which one is refused."""

import pytest

from tlray.config.file import parse_config
from tlray.errors import ConfigError

SMALLEST = """
name: pets
data:
  train: photos
backbones: [torchvision/resnet18]
"""

EVERY_SECTION = """
name: pets
storage: s3://bucket/runs
seed: 7
data:
  train: s3://bucket/train
  val: s3://bucket/val
  exclude: ["*.gif"]
backbones:
  - torchvision/resnet18
  - id: timm/resnet10t
    weights: none
    options: {drop_rate: 0.1}
strategies:
  - linear_probe
  - strategy: partial
    trainable_blocks: 2
    training: {epochs: 3}
  - strategy: gradual
    unfreeze: {1: 0, 2: 3, 4: all}
  - strategy: full
    search_space:
      lr: {loguniform: [0.0001, 0.01]}
training: {epochs: 4, optimizer: sgd}
search_space:
  weight_decay: {grid: [0.0, 0.0001]}
baseline:
  backbone: {id: timm/resnet10t, weights: none}
  training: {epochs: 8}
sweep: {num_samples: 2, scheduler: fifo}
export: {top_k: 2}
"""


def refusal(text: str, *overrides: str) -> str:
    """The message with which the configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, source="run.yaml")
    return str(caught.value)
