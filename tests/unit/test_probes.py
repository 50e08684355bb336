"""The maths of stacked heads against torch: one trial's own loss, gradient, optimizer and scores for every row."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tlray.config import BackboneConfig, Recipe, StrategyConfig, TrialConfig
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze, parameter_groups, train_mode
from tlray.models.split import find_cut, trainable_suffix
from tlray.training.fusion import can_fuse, fusion_key
from tlray.training.metrics import ClassificationSums
from tlray.training.optim import make_optimizer, rate_factor, set_rate
from tlray.training.probe_metrics import StackedSums
from tlray.training.probe_optim import StackedOptimizer
from tlray.training.probes import StackedHeads, fusable_suffix, loss_by_row
from tlray.training.step import train_step

NUM_CLASSES, STEPS, STEPS_PER_EPOCH = 3, 12, 4
# a plain linear head, dropout in front of it, a head that pools first (pooled_head.py), two heads averaged
SUFFIXES = {
    "timm/test_resnet": (32, {}),
    "torchvision/mobilenet_v2": (32, {}),
    "torchvision/squeezenet1_0": (64, {}),
    "timm/deit_tiny_distilled_patch16_224": (64, {"depth": 1, "drop_rate": 0.3}),
}
MIX: tuple[dict[str, object], ...] = (
    {"lr": 0.001},
    {"lr": 0.1, "schedule": "constant", "momentum": 0.0},
    {"lr": 0.003, "weight_decay": 0.3, "label_smoothing": 0.1, "warmup_epochs": 1.5},
    {"lr": 0.01, "gradient_clip": 0.05, "head_lr_mult": 3.0, "epochs": 5},
)


def recipes(optimizer: str) -> list[Recipe]:
    return [Recipe.model_validate({"epochs": 3, "optimizer": optimizer, **fields}) for fields in MIX]


def probe(network: str) -> Backbone:
    """In float64, so that nothing but a mistake tells a row from a trial of its own."""
    size, options = SUFFIXES[network]
    config = BackboneConfig(id=network, weights="none", input_size=size, options=options)
    backbone = build_backbone(config, NUM_CLASSES)
    backbone.model.double()
    freeze(backbone, 0)
    train_mode(backbone, 0, freeze_bn=True)
    return backbone


def batches(backbone: Backbone) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = find_cut(backbone, len(backbone.blocks)).shapes
    return [
        (
            tuple(torch.rand(7, *shape, generator=generator, dtype=torch.float64) for shape in shapes),
            torch.randint(NUM_CLASSES, (7,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def one_by_one(backbone: Backbone, recipe: Recipe) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The head's parameters and losses after training it alone with torch.optim; the model is left as it was."""
    suffix = trainable_suffix(backbone, len(backbone.blocks))
    parameters = {name: p for name, p in suffix.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_optimizer(parameter_groups(backbone), recipe)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing, reduction="sum")
    losses = []
    torch.manual_seed(0)
    for step, (inputs, labels) in enumerate(batches(backbone)):
        set_rate(optimizer, rate_factor(step, steps_per_epoch=STEPS_PER_EPOCH, recipe=recipe))
        clip = recipe.gradient_clip
        losses.append(
            float(train_step(suffix, inputs, labels, criterion, optimizer, scale=1 / len(labels), gradient_clip=clip))
        )
    after = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(before[name])
    return after, losses


def stacked(backbone: Backbone, rows: Sequence[Recipe], drop_at: int = 99) -> tuple[dict[str, torch.Tensor], list]:
    """The same for all recipes at once; from step `drop_at` on without the row in front."""
    heads = StackedHeads(backbone, len(rows))
    optimizer = StackedOptimizer(rows, heads.parameters, heads.decays)
    smoothing = torch.tensor([recipe.label_smoothing for recipe in rows], dtype=torch.float64)
    losses = []
    torch.manual_seed(0)
    for step, (inputs, labels) in enumerate(batches(backbone)):
        if step == drop_at:
            kept = torch.arange(1, len(rows))
            heads.keep(kept)
            optimizer.keep(kept)
            smoothing = smoothing[kept]
        by_row = loss_by_row(heads.logits(inputs), labels, smoothing)
        gradients = heads.gradients(by_row / len(labels))
        factors = optimizer.factors(step, 1, STEPS_PER_EPOCH, torch.device("cpu"))
        optimizer.step(heads.parameters, gradients, factors.at(0))
        losses.append(by_row.tolist())
    return {name: tensor.detach() for name, tensor in heads.parameters.items()}, losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("network", SUFFIXES)
def test_every_row_is_trained_as_torch_would_train_it_alone(network: str, optimizer: str) -> None:
    backbone = probe(network)
    parameters, losses = stacked(backbone, recipes(optimizer))
    for row, recipe in enumerate(recipes(optimizer)):
        expected, expected_losses = one_by_one(backbone, recipe)
        assert expected.keys() == parameters.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(parameters[name][row], tensor, rtol=1e-9, atol=1e-11)
        assert [of_rows[row] for of_rows in losses] == pytest.approx(expected_losses, rel=1e-10)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rows_that_stay_train_on_as_if_the_others_had_never_been_there(optimizer: str) -> None:
    backbone = probe("torchvision/mobilenet_v2")
    parameters, _ = stacked(backbone, recipes(optimizer), drop_at=5)
    for row, recipe in enumerate(recipes(optimizer)[1:]):
        for name, tensor in one_by_one(backbone, recipe)[0].items():
            torch.testing.assert_close(parameters[name][row], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", ["timm/test_resnet", "torchvision/squeezenet1_0"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_row_that_overflows_leaves_the_others_alone(network: str, optimizer: str) -> None:
    backbone = probe(network)
    wild = {"weight_decay": 0.5, "gradient_clip": 1.0, "label_smoothing": 0.1, "schedule": "constant"}
    mixed = [*recipes(optimizer), recipes(optimizer)[0].model_copy(update={"lr": 1e308, **wild})]
    parameters, losses = stacked(backbone, mixed)
    assert not torch.tensor(losses[-1][-1]).isfinite()
    for row, recipe in enumerate(recipes(optimizer)):
        for name, tensor in one_by_one(backbone, recipe)[0].items():
            torch.testing.assert_close(parameters[name][row], tensor, rtol=1e-9, atol=1e-11)


def test_a_linear_head_is_one_product_and_any_other_is_mapped_over_the_rows() -> None:
    linear = {"timm/test_resnet": "fc", "torchvision/mobilenet_v2": "classifier.1"}
    linear["torchvision/squeezenet1_0"] = "classifier.1.3"
    for network in SUFFIXES:
        heads = StackedHeads(probe(network), 2)
        assert heads.linear == linear.get(network, "")


def test_a_portion_of_rows_is_updated_as_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = probe("timm/test_resnet")
    whole, _ = stacked(backbone, recipes("adamw"))
    monkeypatch.setattr("tlray.training.probe_optim.CACHED_NUMBERS", 700)  # three rows of four
    portions, _ = stacked(backbone, recipes("adamw"))
    assert all(portions[name].equal(whole[name]) for name in whole)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_row_is_pytorchs_and_an_infinite_logit_elsewhere_is_none_of_its_concern(smoothing: float) -> None:
    logits = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0, 4, 1, 1, 2, 3])
    with torch.no_grad():
        logits[0, 2, 3] = -torch.inf  # with smoothing this row's loss is infinite
    values = torch.tensor([smoothing, 0.0, smoothing])
    losses = loss_by_row(logits, labels, values)
    for row, value in enumerate(values.tolist()):
        reference = nn.functional.cross_entropy(logits[:, row], labels, label_smoothing=value, reduction="sum")
        torch.testing.assert_close(losses[row], reference)
    (gradient,) = torch.autograd.grad(losses[:2].sum(), logits)
    (expected,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits[:, 0], labels, label_smoothing=smoothing, reduction="sum")
        + nn.functional.cross_entropy(logits[:, 1], labels, reduction="sum"),
        logits,
    )
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("num_classes", [2, 5, 9])
def test_stacked_sums_give_every_row_the_scores_of_its_own_sums(num_classes: int) -> None:
    """With equal logits, as they come out of a ReLU, and with those of a diverged row."""
    generator = torch.Generator().manual_seed(num_classes)
    num_rows = 6
    sums = StackedSums(num_rows, num_classes)
    references = [ClassificationSums(num_classes) for _ in range(num_rows)]
    for size in (8, 1, 13):
        logits = torch.randn(size, num_rows, num_classes, generator=generator)
        logits[:, 1] = logits[:, 1].relu()
        logits[:, 2] = 0.0
        logits[:, 3, 0] = torch.nan
        logits[:, 4, -1] = torch.inf
        labels = torch.randint(max(2, num_classes - 2), (size,), generator=generator)
        sums.update(logits, labels)
        for row, reference in enumerate(references):
            reference.update(logits[:, row], labels)
    for row, (scores, reference) in enumerate(zip(sums.result(), references, strict=True)):
        expected = reference.result()
        assert scores.loss == pytest.approx(expected.loss, rel=1e-6, nan_ok=True), row
        assert scores.macro_f1 == pytest.approx(expected.macro_f1, abs=1e-12)
        assert (scores.accuracy, scores.top5_accuracy) == (expected.accuracy, expected.top5_accuracy)
        assert scores.num_images == expected.num_images == 22


def test_heads_with_batchnorm_are_not_stacked_and_the_reason_names_it() -> None:
    config = BackboneConfig(id="timm/levit_128s", weights="none")
    reason = fusable_suffix(build_backbone(config, NUM_CLASSES))
    assert reason is not None
    assert "head.bn" in reason
    assert all(fusable_suffix(probe(network)) is None for network in ("timm/test_resnet", "torchvision/squeezenet1_0"))


def make_trial(strategy: str = "linear_probe", **recipe: object) -> TrialConfig:
    return TrialConfig(
        trial_id="t",
        backbone=BackboneConfig(id="timm/test_resnet", weights="none"),
        strategy=StrategyConfig.model_validate({"strategy": strategy}),
        recipe=Recipe.model_validate(recipe),
        seed=0,
    )


def test_linear_probes_in_float32_can_train_as_one_and_nothing_else() -> None:
    assert can_fuse(make_trial())
    assert not can_fuse(make_trial("full"))
    assert can_fuse(make_trial(precision="bfloat16"))
    assert not can_fuse(make_trial().model_copy(update={"is_baseline": True}))


def test_a_group_shares_what_its_features_and_its_order_of_images_depend_on() -> None:
    key = fusion_key(make_trial())
    for fields in MIX:
        assert fusion_key(make_trial(**fields, patience=3)) == key
    for fields in ({"batch_size": 8}, {"augmentation": "none"}, {"views": 1}, {"optimizer": "sgd"}):
        assert fusion_key(make_trial(**fields)) != key
    assert fusion_key(make_trial().model_copy(update={"seed": 1})) != key
    assert fusion_key(make_trial().model_copy(update={"backbone": BackboneConfig(id="timm/test_vit")})) != key
