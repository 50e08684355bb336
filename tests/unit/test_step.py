"""One training step, against PyTorch written out."""

import copy

import pytest
import torch
from torch import nn

from tlray.training.step import eval_step, train_step


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def batch(num_images: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_images, 3, 8, 8, generator=generator), torch.randint(5, (num_images,), generator=generator)


def test_a_step_equals_pytorch_with_the_mean_loss() -> None:
    model, (images, labels) = small_model(), batch()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)
    loss = train_step(model, (images,), labels, criterion, optimizer, scale=1 / len(labels))

    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    mean_loss = nn.functional.cross_entropy(reference(images), labels, label_smoothing=0.1)
    mean_loss.backward()
    mean_loss = mean_loss.detach()
    theirs.step()
    assert float(loss) / len(labels) == pytest.approx(float(mean_loss), rel=1e-6)
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_unequal_shares_of_two_workers_add_up_to_the_gradient_of_one() -> None:
    images, labels = batch(7)
    whole = small_model()
    criterion = nn.CrossEntropyLoss(reduction="sum")
    train_step(whole, (images,), labels, criterion, torch.optim.SGD(whole.parameters(), lr=0.0), scale=1 / 7)
    gradients = []
    for rank in range(2):
        part = small_model()
        optimizer = torch.optim.SGD(part.parameters(), lr=0.0)
        train_step(part, (images[rank::2],), labels[rank::2], criterion, optimizer, scale=2 / 7)
        gradients.append([p.grad for p in part.parameters()])
    for expected, first, second in zip(whole.parameters(), *gradients, strict=True):
        torch.testing.assert_close((first + second) / 2, expected.grad)


def test_gradient_clipping_limits_the_update() -> None:
    model, (images, labels) = small_model(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_step(model, (images,), labels, nn.CrossEntropyLoss(reduction="sum"), optimizer, gradient_clip=0.01)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_still_learns_and_returns_float32_logits(precision: str) -> None:
    model, (images, labels) = small_model(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if precision == "float16" else None
    criterion = nn.CrossEntropyLoss(reduction="sum")
    inputs = (images,)
    losses = [
        float(train_step(model, inputs, labels, criterion, optimizer, scale=1 / 7, precision=precision, scaler=scaler))
        for _ in range(15)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert eval_step(model, (images,), precision=precision).dtype == torch.float32
