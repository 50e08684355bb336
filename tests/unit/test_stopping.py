"""Which trials are stopped early, on made-up learning curves."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.stopping_replay import Curve, fair, never, replay
from tlray.config import BackboneConfig, Recipe, StrategyConfig, SweepConfig, TrialConfig
from tlray.models.freeze import num_trainable_blocks
from tlray.runs.stopping import Halving, course_of, expected_epochs, words_on_stopping
from tlray.training.epoch import EpochMetrics

ASHA = SweepConfig()
EPOCHS = 12


def trial(trial_id: str, strategy: str = "full", **recipe: Any) -> TrialConfig:
    fields = {"trainable_blocks": 2} if strategy == "partial" else {}
    return TrialConfig(
        trial_id=trial_id,
        backbone=BackboneConfig(id="a"),
        strategy=StrategyConfig.model_validate({"strategy": strategy, **fields}),
        recipe=Recipe.model_validate({"epochs": EPOCHS, **recipe}),
        seed=0,
    )


def rising(end: float, slowness: float, epochs: int = EPOCHS, start: float = 0.2) -> list[float]:
    """Validation accuracies that come near `end` within some `slowness` epochs."""
    return [end - (end - start) * math.exp(-epoch / slowness) for epoch in range(1, epochs + 1)]


def metrics(epoch: int, val_accuracy: float, seconds: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1 - val_accuracy,
        val_accuracy=val_accuracy,
        val_top5_accuracy=1.0,
        val_macro_f1=val_accuracy,
        lr=0.1,
        seconds=seconds,
        images_per_second=1.0,
    )


def epochs_of(halving: Halving, order: Sequence[tuple[TrialConfig, Sequence[float]]]) -> dict[str, int]:
    """How many epochs each trial gets, one trial after the other."""
    reached = {}
    for one, accuracies in order:
        for epoch, accuracy in enumerate(accuracies, start=1):
            reached[one.trial_id] = epoch
            if halving.report(one.trial_id, epoch, accuracy):
                break
    return reached


def run(order: Sequence[tuple[TrialConfig, Sequence[float]]], sweep: SweepConfig = ASHA) -> dict[str, int]:
    return epochs_of(Halving(sweep, [one for one, _ in order]), order)


def test_heads_that_are_good_after_an_epoch_never_stop_a_trial_that_trains_everything() -> None:
    heads = [(trial(f"head{n}", "linear_probe"), rising(0.8, 0.5)) for n in range(9)]
    slow = (trial("full"), rising(0.9, 6))
    assert run([*heads, slow])["full"] == EPOCHS


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_each_kind_runs_to_its_end_in_any_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    order = [
        (trial(f"{kind}{n}", kind), rising(end, 3 if kind == "full" else 1))
        for kind in ("linear_probe", "partial", "gradual", "full")
        for n, end in enumerate([0.9, 0.85, 0.8, 0.7, 0.6, 0.5])
    ]
    generator.shuffle(order)  # type: ignore[arg-type]  # of a list, in place
    reached = run(order)
    assert [reached[f"{kind}0"] for kind in ("linear_probe", "partial", "gradual", "full")] == [EPOCHS] * 4
    assert min(reached.values()) < EPOCHS


def test_who_was_slow_at_first_and_is_the_best_by_now_goes_on() -> None:
    early = [(trial(f"early{n}"), [0.7] * EPOCHS) for n in range(5)]
    late, others = trial("late"), [one for one, _ in early]
    halving = Halving(ASHA, [*others, late])
    epochs_of(halving, early)
    assert [halving.report("late", epoch, 0.1 * epoch) for epoch in range(1, 4)] == [False] * 3
    assert not halving.report("late", 4, 0.75)
    assert not halving.report("late", 5, 0.74), "one worse epoch is no reason"


def test_the_first_to_arrive_is_overtaken_by_those_that_come_later() -> None:
    first, better = trial("first"), [trial(f"better{n}") for n in range(3)]
    halving = Halving(ASHA, [first, *better])
    assert not any(halving.report("first", epoch, 0.5) for epoch in range(1, 6))
    for one in better:
        assert not halving.report(one.trial_id, 4, 0.6)
    assert halving.report("first", 6, 0.5)


def test_a_third_of_the_epochs_is_for_everyone_not_counting_warm_up_and_thawing() -> None:
    def grace(one: TrialConfig, sweep: SweepConfig = ASHA) -> int:
        return course_of(one, sweep).grace_epochs

    assert grace(trial("a")) == 4
    assert grace(trial("a", epochs=10)) == 4
    assert grace(trial("a", warmup_epochs=2.5)) == 3 + 3
    assert grace(trial("a", warmup_epochs=100)) == EPOCHS
    assert grace(trial("a", "gradual")) == 8 + 2, "all blocks train from the ninth epoch on"
    assert grace(trial("a", epochs=1)) == 1
    own = trial("a").model_copy(update={"strategy": StrategyConfig(strategy="gradual", unfreeze={1: 1, 3: "all"})})
    assert grace(own) == 2 + 4
    assert grace(trial("a", "gradual", warmup_epochs=3), SweepConfig(grace_period=2)) == 2, "a number is a number"


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 10, 12])
def test_thawing_ends_where_the_number_of_trainable_blocks_changes_last(epochs: int) -> None:
    gradual = trial("a", "gradual", epochs=epochs)
    blocks = [num_trainable_blocks(gradual.strategy, 10, epoch, epochs) for epoch in range(1, epochs + 1)]
    last = max((epoch for epoch in range(1, epochs) if blocks[epoch] != blocks[epoch - 1]), default=0)
    assert course_of(gradual, ASHA).uncounted == last


def test_trials_of_different_length_are_compared_by_the_share_of_their_own_epochs() -> None:
    short, long = trial("short", epochs=6), trial("long", epochs=24)
    assert course_of(short, ASHA).grace_epochs == 2
    assert course_of(long, ASHA).grace_epochs == 8
    halving = Halving(ASHA, [short, long])
    for epoch, accuracy in enumerate(rising(0.7, 1, 6), start=1):
        halving.report("short", epoch, accuracy)
    # at the same epoch it is far behind, at the same share of its epochs it is ahead
    assert not any(halving.report("long", epoch, 0.1 * epoch) for epoch in range(1, 9))
    assert Halving(SweepConfig(grace_period=2), [short, long]).report("short", 2, 0.5) is False


def test_with_a_number_of_epochs_trials_of_one_kind_are_compared_at_the_same_epoch() -> None:
    sweep = SweepConfig(grace_period=1, reduction_factor=2)
    good, bad = trial("good", epochs=6), trial("bad", epochs=24)
    assert run([(good, rising(0.9, 1, 6)), (bad, rising(0.5, 1, 24))], sweep) == {"good": 6, "bad": 1}


def test_the_baseline_and_known_recipes_are_never_stopped_and_stop_nobody() -> None:
    baseline = trial("000-baseline", "scratch").model_copy(update={"is_baseline": True})
    known = trial("known").model_copy(update={"is_known_recipe": True})
    others = [(trial(f"full{n}"), [0.9 - 0.1 * n] * EPOCHS) for n in range(4)]
    scratch = [(trial(f"scratch{n}", "scratch"), [0.8 - 0.1 * n] * EPOCHS) for n in range(2)]
    reached = run([(baseline, [0.95] * EPOCHS), (known, [0.99] * EPOCHS), *scratch, *others])
    assert (reached["000-baseline"], reached["known"]) == (EPOCHS, EPOCHS)
    assert (reached["full0"], reached["scratch0"]) == (EPOCHS, EPOCHS)
    assert reached["full3"] < EPOCHS
    last = run([*others, (known, [0.1] * EPOCHS), (baseline, [0.1] * EPOCHS)])
    assert (last["000-baseline"], last["known"]) == (EPOCHS, EPOCHS)


def test_the_plan_names_the_kinds_that_compete_and_their_grace_periods() -> None:
    trials = [trial("a"), trial("b", epochs=30), trial("c", "gradual"), trial("d", "partial"), trial("e", "partial")]
    (line,) = words_on_stopping(ASHA, trials)
    assert line.endswith("(sweep.grace_period auto): full 4 to 10, partial 4")
    assert words_on_stopping(SweepConfig(grace_period=2), trials)[0].endswith("2): full 2, partial 2")
    assert words_on_stopping(SweepConfig(scheduler="fifo"), trials) == ()
    assert words_on_stopping(ASHA, trials[:1]) == ()


def test_what_was_reported_before_a_resume_counts_after_it() -> None:
    trials = [trial(name) for name in ("a", "b", "c")]
    before = {"a": [(epoch, 0.9) for epoch in range(1, EPOCHS + 1)], "b": [(epoch, 0.8) for epoch in range(1, 7)]}
    resumed = Halving(ASHA, trials, before)
    assert resumed.report("c", 4, 0.5)
    assert not Halving(ASHA, trials).report("c", 4, 0.5)


def test_a_trial_that_begins_again_is_judged_by_what_it_does_now() -> None:
    trials = [trial("a"), trial("b")]
    halving = Halving(ASHA, trials, {"a": [(epoch, 0.9) for epoch in range(1, 7)]})
    halving.report("a", 1, 0.1)
    assert not halving.report("b", 4, 0.5), "a has not come as far yet"


def test_a_tie_stops_nobody() -> None:
    assert set(run([(trial(f"full{n}"), [0.5] * EPOCHS) for n in range(5)]).values()) == {EPOCHS}


@pytest.mark.parametrize(
    ("epochs", "sweep"),
    [
        (12, SweepConfig()),
        (10, SweepConfig(reduction_factor=4)),
        (9, SweepConfig(grace_period=1)),
        (27, SweepConfig(grace_period=3)),
        (1, SweepConfig()),
        (5, SweepConfig(grace_period=8)),
        (9, SweepConfig(scheduler="fifo")),
    ],
)
def test_the_expected_epochs_are_those_that_many_trials_get_on_average(epochs: int, sweep: SweepConfig) -> None:
    number = 90
    trials = [trial(f"{n:03d}", epochs=epochs) for n in range(number)]
    halving = Halving(sweep, trials)
    trained, alive = 0, list(range(number))
    for epoch in range(1, epochs + 1):  # all side by side, the best first
        trained += len(alive)
        stops = [halving.report(f"{n:03d}", epoch, 1 - n / number) for n in alive]
        stops = [halving.report(f"{n:03d}", epoch, 1 - n / number) for n in alive]  # now that all have got there
        if sweep.scheduler == "asha":
            alive = [n for n, stop in zip(alive, stops, strict=True) if not stop]
    assert expected_epochs(trials[0], sweep) == pytest.approx(trained / number, rel=0.05)


def test_at_least_two_fifths_of_the_work_are_saved_and_the_winner_is_found() -> None:
    """Sixteen trials of two kinds with noisy curves, two workers, 50 orders."""
    generator = np.random.default_rng(0)
    curves = []
    for kind, slowness, most in (("full", 3.0, 0.92), ("partial", 1.0, 0.88)):
        for number in range(8):
            accuracies = rising(most - 0.04 * number, slowness) + generator.normal(0, 0.005, EPOCHS)
            epochs = tuple(metrics(*one, seconds=3.0 if kind == "full" else 1.0) for one in enumerate(accuracies, 1))
            curves.append(Curve(trial(f"{kind}{number}", kind), epochs, tuple(accuracies), num_val=1000))
    everything = replay(curves, never, seed=None)
    assert everything.seconds == sum(curve.seconds for curve in curves)
    outcomes = [replay(curves, fair(ASHA), seed=seed) for seed in range(50)]
    assert np.mean([outcome.seconds for outcome in outcomes]) <= 0.6 * everything.seconds
    assert {outcome.choice.trial_id for outcome in outcomes} == {everything.choice.trial_id}
    assert replay(curves, fair(ASHA), seed=3) == outcomes[3], "a replay is the same every time"
