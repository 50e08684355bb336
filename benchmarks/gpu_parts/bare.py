"""Plain PyTorch at its best: what each part of tlray is measured against, in the same process."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.gpu_parts.work import noise_batches, trial
from tlray.models.backbone import build_backbone
from tlray.models.freeze import freeze, train_mode
from tlray.models.split import trainable_suffix
from tlray.process.device import wait
from tlray.training.inputs import place
from tlray.training.worker import Worker

REPEATS = 2


def best_speed(epoch: Callable[[], int], device: torch.device) -> float:
    """Images a second of the best of some epochs after a warm one."""
    epoch()
    best = 0.0
    for _ in range(REPEATS):
        wait(device)
        started = time.perf_counter()
        images = epoch()
        wait(device)
        best = max(best, images / (time.perf_counter() - started))
    return best


def full_speed(name: str, batch: int, steps: int, device: torch.device) -> float:
    """Every block trains: bfloat16 autocast, fused AdamW, pinned batches, cuDNN's search, no call that waits."""
    backbone = build_backbone(trial(name).backbone, 10, seed=0)
    place(backbone, Worker(device=device))
    train_mode(backbone, len(backbone.blocks), True)
    model, optimizer = backbone.model, torch.optim.AdamW(backbone.model.parameters(), fused=device.type == "cuda")
    p = backbone.preprocessing
    mean = torch.tensor(p.mean, device=device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(p.std, device=device).view(3, 1, 1) * 255)
    host = [(one.inputs[0], one.labels) for one in noise_batches(p, batch, device)]

    def epoch() -> int:
        for step in range(steps):
            pixels, labels = (tensor.to(device, non_blocking=True) for tensor in host[step % len(host)])
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model((pixels.float() - mean) * scale), labels)
            loss.backward()
            optimizer.step()
        return steps * batch

    with _search():
        return best_speed(epoch, device)


def timm_speed(name: str, batch: int, steps: int, device: torch.device) -> float:
    """timm's own loop: its PrefetchLoader, its optimizer factory, its step under bfloat16 autocast."""
    from timm.data.loader import PrefetchLoader
    from timm.optim import create_optimizer_v2

    backbone = build_backbone(trial(name).backbone, 10, seed=0)
    place(backbone, Worker(device=device))
    model = backbone.model.train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=1e-4)
    p = backbone.preprocessing
    host = [(one.inputs[0], one.labels) for one in noise_batches(p, batch, device)]
    batches = [host[step % len(host)] for step in range(steps)]
    loader = PrefetchLoader(batches, mean=p.mean, std=p.std, channels=3, device=device)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> int:
        for pixels, labels in loader:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = criterion(model(pixels.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps * batch

    with _search():
        return best_speed(epoch, device)


def partial_speed(
    name: str, blocks: int, batch: int, values: Sequence[torch.Tensor], labels: torch.Tensor, device: torch.device
) -> float:
    """The last blocks on activations (N, ...) that lie on the device."""
    backbone = build_backbone(trial(name).backbone, 10, seed=0)
    place(backbone, Worker(device=device))
    freeze(backbone, blocks)
    train_mode(backbone, blocks, True)
    suffix = trainable_suffix(backbone, len(backbone.blocks) - blocks)
    parameters = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=device.type == "cuda")

    def epoch() -> int:
        order = torch.randperm(len(labels), device=device)
        for begin in range(0, len(labels) - batch + 1, batch):
            rows = order[begin : begin + batch]
            inputs = [value[rows] for value in values]
            inputs = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in inputs]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(suffix(*inputs), labels[rows])
            loss.backward()
            optimizer.step()
        return len(labels) // batch * batch

    with _search():
        return best_speed(epoch, device)


def heads_speed(heads: int, features: torch.Tensor, labels: torch.Tensor, classes: int, batch: int) -> float:
    """Heads as one matrix, AdamW, float32, on features (N, D) on the device: a CUDA graph a step, eager on a CPU."""
    device = features.device
    weights = torch.zeros(heads * classes, features.shape[1], device=device, requires_grad=True)
    biases = torch.zeros(heads * classes, device=device, requires_grad=True)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW([weights, biases], lr=1e-3, fused=on_gpu, capturable=on_gpu)
    rows = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = nn.functional.linear(features[rows], weights, biases).view(batch * heads, classes)
        of_rows = labels[rows].repeat_interleave(heads)
        nn.functional.cross_entropy(logits, of_rows, reduction="sum").div(batch).backward()
        optimizer.step()

    replay: Callable[[], None] = step
    if on_gpu:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay

    def epoch() -> int:
        order = torch.randperm(len(labels), device=device)
        for begin in range(0, len(labels) - batch + 1, batch):
            rows.copy_(order[begin : begin + batch])
            replay()
        return len(labels) // batch * batch

    return best_speed(epoch, device)


def _search() -> "torch.backends.cudnn.flags":
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
