"""When a Ray that answers is said to stand still, and when it is given up: pure decisions on made-up looks."""

import pytest

pytest.importorskip("ray")

from tlray.distributed.standing import LOOKS_TO_END, LOOKS_TO_TELL, Look, Loop, Node, Standing, Verdict

FREE = Node(all={"CPU": 4.0, "memory": 8.0, "object_store_memory": 2.0}, free={"CPU": 4.0, "memory": 8.0})
BUSY = Node(all={"CPU": 4.0}, free={"CPU": 1.0})
ONE_CPU, A_GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


def judged(look: Look, times: int, standing: Standing | None = None) -> list[Verdict]:
    """The verdicts that say anything, of so many equal looks."""
    standing = standing or Standing()
    verdicts = [standing.judge(look) for _ in range(times)]
    return [verdict for verdict in verdicts if verdict != Verdict()]


@pytest.mark.parametrize(
    "look",
    [
        Look(nodes=[FREE], waiting=[]),
        Look(nodes=[BUSY], waiting=[ONE_CPU]),  # it waits, but something runs: that may end in hours
        Look(nodes=[BUSY], waiting=[A_GPU]),
        Look(nodes=[FREE], waiting=[], loops=[Loop(name="Ray Tune", still=0, idle=0)]),
        Look(nodes=[BUSY], waiting=[], loops=[Loop(name="Ray Tune", still=5, idle=500)]),
    ],
)
def test_what_works_or_has_nothing_to_do_is_left_alone_for_ever(look: Look) -> None:
    assert judged(look, 10_000) == []


def test_nothing_started_though_its_place_is_free_is_told_once_and_then_the_end() -> None:
    verdicts = judged(Look(nodes=[FREE], waiting=[ONE_CPU]), LOOKS_TO_END)
    assert [verdict.end is not None for verdict in verdicts] == [False, True]
    assert (
        verdicts[0].note == f"Ray has started nothing for {LOOKS_TO_TELL} s, though {{CPU: 1}} is free and waited for"
    )


def test_a_wait_for_a_node_is_told_and_lasts_as_long_as_the_cluster_may_take() -> None:
    look = Look(nodes=[FREE, FREE], waiting=[A_GPU])
    standing = Standing(looks_for_a_node=1000)
    (told,) = judged(look, 999, standing)
    assert told.note == "no node has {CPU: 1, GPU: 1}, which the work waits for; 2 are alive"
    (end,) = judged(look, 1, standing)
    assert end.end is not None


def test_a_start_in_between_begins_the_count_anew() -> None:
    standing, waits = Standing(), Look(nodes=[FREE], waiting=[ONE_CPU])
    for _ in range(20):
        assert judged(waits, LOOKS_TO_TELL - 1, standing) == []
        assert judged(Look(nodes=[BUSY], waiting=[]), 1, standing) == []


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (Loop(name="Ray Tune", still=LOOKS_TO_END, idle=LOOKS_TO_END), "stood still for 180 s"),
        (
            Loop(name="Ray Tune", still=0, idle=LOOKS_TO_END),
            "started none of the waiting trials for 180 s",
        ),
    ],
)
def test_a_loop_that_does_not_turn_or_starts_nothing_is_the_end(loop: Loop, words: str) -> None:
    assert judged(Look(nodes=[FREE], waiting=[], loops=[loop]), 1) == [Verdict(end=f"Ray Tune has {words}")]
