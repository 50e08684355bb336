"""One optimisation step and one evaluation step: tensors in, tensors out. Imports torch only.

B images of a batch, C classes. A model's inputs are its images (B, 3, H, W), or what a frozen prefix has computed of
them, one tensor (B, ...) for each value alive at the cut; float either way.
"""

import torch
from torch import nn

from tlray.process.device import autocast


def train_step(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scale: float = 1.0,
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
    gradient_clip: float = 0.0,
) -> torch.Tensor:
    """Forward, backward, update. labels (B,) int64 -> summed loss () before `scale`.

    `criterion` sums over the batch; `scale` turns that sum into this worker's part of the mean over the global
    batch, so that workers with unequal shares still add up to the gradient of one worker with all the images.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(inputs[0].device, precision):
        loss = criterion(model(*inputs), labels)
    scaled = loss * scale
    if scaler is not None:
        scaler.scale(scaled).backward()
        scaler.unscale_(optimizer)
    else:
        scaled.backward()
    if gradient_clip > 0:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(trained, gradient_clip)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return loss.detach()


@torch.no_grad()
def eval_step(model: nn.Module, inputs: tuple[torch.Tensor, ...], *, precision: str = "float32") -> torch.Tensor:
    """Inputs of a model -> logits (B, C) float32. The caller has set evaluation mode."""
    with autocast(inputs[0].device, precision):
        logits = model(*inputs)
    return logits.float()
