"""What a run decided about the activations of one frozen prefix, as plan.json keeps it. No torch here.

A *source* is what trials read: the activations of one backbone at one cut, for `views` draws of the training images.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tlray.config import BackboneConfig


class ActivationSource(BaseModel):
    """One cut of one backbone, who reads it, what it costs either way, and whether it is materialised."""

    model_config = ConfigDict(frozen=True)

    backbone: BackboneConfig
    seed: int  # of the backbone's random weights, where it has some
    num_frozen: int  # blocks before the cut
    num_blocks: int
    last_block: str  # the last frozen one
    augmentation: str
    views: int  # draws of a training image; 0 draws anew in every epoch
    trials: tuple[str, ...]
    with_test: bool  # whether the test images are read at this cut too
    bytes_per_image: int  # at the cut, as stored; 0 where the backbone cannot be split there
    num_draws: int  # through the prefix, to materialise all of it
    num_stored: int  # of those, how many the store had when the run was planned
    num_reads: int  # by all trials in all epochs; the forwards that recomputing would take
    decode_seconds: float  # an image, with its transform; measured with the threads of a pass task
    prefix_seconds: float  # an image, measured likewise
    materialise_seconds: float
    recompute_seconds: float
    materialise: bool
    reason: str
    keys: tuple[dict[str, Any], ...]  # the activation key of each draw

    @property
    def bytes_to_add(self) -> int:
        return (self.num_draws - self.num_stored) * self.bytes_per_image


def source_of(sources: Sequence[ActivationSource], trial_id: str, num_frozen: int) -> ActivationSource | None:
    """The materialised source that a trial reads while its first `num_frozen` blocks are frozen; None: recompute."""
    for source in sources:
        if source.materialise and source.num_frozen == num_frozen and trial_id in source.trials:
            return source
    return None
