"""A linear probe that is solved: the features of all training images in one pass, then one logistic regression.

    trial, note = as_it_can_be_found(trial, backbone, num_train)     # by gradients where it cannot be solved, and why
    progress = solve_trial(backbone, feed_for, trial, worker, folder)

It is a trial like any other, of a single epoch. Its checkpoint holds the head, and the strength of regularisation that
cross-validation has chosen. Killed before the checkpoint is committed, it is solved again, to the same result.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import nn

from tlray.config import Recipe, TrialConfig
from tlray.data.to_device import on_device
from tlray.models.backbone import Backbone
from tlray.models.freeze import freeze, hash_tensors
from tlray.models.pooled_head import HARMLESS, is_reshaping
from tlray.process.device import arithmetic
from tlray.training.checkpoint import MODEL, TrialFolder
from tlray.training.epoch import EpochMetrics
from tlray.training.inputs import model_inputs, place
from tlray.training.loop import Feed, evaluate, peak_memory, thaw_plan, with_precision
from tlray.training.probe_solution import Solution, solve
from tlray.training.record import Progress
from tlray.training.step import eval_step
from tlray.training.worker import Worker

LARGEST_FEATURES = 2**31  # bytes of the training images' features, in float64, and of what is made of them
COPIES = 3  # as they are, standardised, in their own coordinates
LIVE_DRAWS = 4  # where every epoch would have a draw of its own
STRENGTH = "solver/strength"  # in a checkpoint


def as_it_can_be_found(trial: TrialConfig, backbone: Backbone, num_train: int) -> tuple[TrialConfig, str | None]:
    """The trial, by gradients where it was to be solved and cannot be, and what its row says of that."""
    reason = unsolvable(backbone, num_train * draws_of(trial.recipe)) if trial.is_solved else None
    if reason is None:
        return trial, None
    strategy = trial.strategy.model_copy(update={"solver": "gradient"})
    return trial.model_copy(update={"strategy": strategy}), f"trained by gradients: {reason}"


def as_they_can_be_found(
    trials: Sequence[TrialConfig], backbone: Backbone, num_train: int
) -> tuple[list[TrialConfig], list[str]]:
    """All trials of a backbone, and a line on those that cannot be solved, for the plan."""
    pairs = [as_it_can_be_found(trial, backbone, num_train) for trial in trials]
    notes = dict.fromkeys(f"{backbone.id}: its linear probe is {note}" for _, note in pairs if note is not None)
    return [trial for trial, _ in pairs], list(notes)


def unsolvable(backbone: Backbone, num_rows: int) -> str | None:
    """Why a linear probe on so many draws of images cannot be solved; None where it can."""
    head = linear_head(backbone)
    if head is None or head.bias is None or not _is_last(backbone):
        return "its classifier is not one linear layer with a bias"
    num_bytes = 8 * COPIES * num_rows * head.weight.shape[1]
    if num_bytes > LARGEST_FEATURES:
        return f"its features would take {num_bytes / 2**30:.1f} GiB, and {LARGEST_FEATURES / 2**30:.0f} are the most"
    return None


def linear_head(backbone: Backbone) -> nn.Linear | nn.Conv2d | None:
    """The classifier where it is one linear layer, or a convolution on one place."""
    head = backbone.model.get_submodule(backbone.head[0])
    if len(backbone.head) > 1:
        return None
    if isinstance(head, nn.Linear) and type(head) is nn.Linear:
        return head
    is_linear = isinstance(head, nn.Conv2d) and type(head) is nn.Conv2d and head.kernel_size == (1, 1)
    return head if isinstance(head, nn.Conv2d) and is_linear and head.groups == 1 else None


def _is_last(backbone: Backbone) -> bool:
    """Whether the classifier's outputs are the model's, but for their shape."""
    if backbone.trace is None:
        return False
    nodes = list(backbone.trace.traced.graph.nodes)
    calls = [place for place, node in enumerate(nodes) if node.op == "call_module" and node.target == backbone.head[0]]
    return len(calls) == 1 and all(
        node.op == "output"
        or is_reshaping(node)
        or (node.op == "call_module" and isinstance(backbone.model.get_submodule(str(node.target)), HARMLESS))
        for node in nodes[calls[0] + 1 :]
    )


def solve_trial(
    backbone: Backbone,
    feed_for: Callable[[TrialConfig, Worker], Feed],
    trial: TrialConfig,
    worker: Worker,
    folder: TrialFolder,
) -> Progress:
    """Solve `trial` unless its folder holds its solution. Of several workers the first solves, the others wait."""
    recipe = with_precision(trial.recipe, worker.device)
    place(backbone, worker)
    thaw = thaw_plan(backbone, trial)
    freeze(backbone, thaw.most)
    frozen_hash = hash_tensors(backbone.model, thaw.frozen_keys)
    if worker.leads:
        folder.go_back()
        if folder.load_progress().epoch == 0:
            alone = Worker(device=worker.device)
            with arithmetic(worker.device, recipe.precision, deterministic=recipe.deterministic):
                progress, solution = _solve(backbone, feed_for, trial, recipe.precision, alone)
            state = backbone.model.state_dict()
            tensors = {MODEL + key: state[key].detach().cpu().contiguous().clone() for key in thaw.changing_keys}
            folder.save_best(progress, tensors | {STRENGTH: torch.tensor(solution.strength)}, frozen_hash)
    worker.sum_across(torch.zeros(()))
    return folder.load_progress()


def _solve(
    backbone: Backbone,
    feed_for: Callable[[TrialConfig, Worker], Feed],
    trial: TrialConfig,
    precision: str,
    worker: Worker,
) -> tuple[Progress, Solution]:
    started = time.perf_counter()
    backbone.model.eval()
    feed = feed_for(_as_evaluated(trial), worker)
    augmented = feed_for(trial, worker) if feed.reads_images else feed
    streams, num_draws = feed.streams, draws_of(trial.recipe)
    features, labels = training_features(backbone, feed, 0, precision, worker)
    draws = [training_features(backbone, augmented, draw, precision, worker)[0] for draw in range(1, num_draws)]
    head = linear_head(backbone)
    assert head is not None, "as_it_can_be_found has seen to that"
    assert head.bias is not None, "likewise"
    solution = solve([features, *draws], labels, len(head.weight), trial.seed)
    with torch.no_grad():
        head.weight.copy_(solution.weight.view_as(head.weight))
        head.bias.copy_(solution.bias)
    solved = time.perf_counter()
    scores = evaluate(feed.model, streams, streams.val(), worker, precision)
    metrics = EpochMetrics(
        epoch=1,
        train_loss=solution.loss,
        val_loss=scores.loss,
        val_accuracy=scores.accuracy,
        val_top5_accuracy=scores.top5_accuracy,
        val_macro_f1=scores.macro_f1,
        lr=0.0,
        seconds=time.perf_counter() - started,
        images_per_second=num_draws * streams.num_train / (solved - started),
    )
    progress = replace(
        Progress().after(metrics, streams.num_val),
        images_seen=num_draws * streams.num_train,
        prefix_images_computed=num_draws * streams.num_train + streams.num_val if feed.reads_images else 0,
        seconds=metrics.seconds,
        peak_memory_bytes=peak_memory(worker.device),
    )
    return progress, solution


def _as_evaluated(trial: TrialConfig) -> TrialConfig:
    return trial.model_copy(update={"recipe": trial.recipe.model_copy(update={"augmentation": "none"})})


def draws_of(recipe: Recipe) -> int:
    """How many draws of each image the probe is solved on, the evaluation transform among them."""
    if recipe.augmentation == "none":
        return 1
    return recipe.views or LIVE_DRAWS


def training_features(
    backbone: Backbone, feed: Feed, draw: int, precision: str, worker: Worker
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier reads of a draw of every training image: (N, D) float32, labels (N,) int64, in their order.

    The caller has set evaluation mode. Epochs of activations are draws, the first of which is not augmented.
    """
    read: list[torch.Tensor] = []
    head = backbone.model.get_submodule(backbone.head[0])
    features, labels = torch.empty(0), torch.empty(feed.streams.num_train, dtype=torch.int64, device=worker.device)
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        with closing(on_device(feed.streams.train(draw), worker.device)) as batches:
            for batch in batches:
                eval_step(feed.model, model_inputs(batch, feed.streams, worker, precision), precision=precision)
                values = read.pop().flatten(1).float()
                if len(features) == 0:
                    features = values.new_empty(feed.streams.num_train, values.shape[1])
                rows = batch.rows.to(worker.device)
                features[rows], labels[rows] = values, batch.labels.to(worker.device)
    finally:
        hook.remove()
    return features, labels
