"""The command: makes the references that the rounds need, then one round after the other, a line each."""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the fixtures of the tests, which are no package

from tests.chaos.kinds import KINDS
from tests.chaos.play import Stage
from tests.chaos.rounds import COUNTED, Verdict
from tests.chaos.setting import Setting

LIMIT = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    wanted = chosen_rounds(given)
    print(f"seed {given.seed}: {mix_in_words([kind for _, kind in wanted])}", flush=True)
    started = time.monotonic()
    verdicts = []
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c-")))
        with_s3 = any(KINDS[kind].ray == "s3" for _, kind in wanted)
        setting = stack.enter_context(Setting(folder.absolute(), given.limit, with_s3))
        stage = Stage(setting)
        for number, kind in wanted:
            verdicts.append(stage.play(given.seed, number, kind))
            print(verdicts[-1].line, flush=True)
    counts = total(verdicts, time.monotonic() - started)
    print(json.dumps(counts))
    return int(any(counts[name] for name in COUNTED))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the kinds, their order and every choice in them (0)")
    parser.add_argument("--round", type=int, help="this one alone")
    parser.add_argument("--start", type=int, default=0, help="of these, the rounds from this number on (0)")
    parser.add_argument("--part", default="1/1", help="K/M: each M-th round, from the K-th on, for several machines")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="only these")
    parser.add_argument("--folder", type=Path, help="for all files, kept; its path is short (by default a new one)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds that one command may take ({LIMIT:g})")
    return parser.parse_args(arguments)


def deck(seed: int) -> list[str]:
    """Every kind as often as its share says, in an order of the seed's; round R is the (R mod 100)-th."""
    kinds = [name for name, kind in KINDS.items() for _ in range(kind.share)]
    random.Random(seed).shuffle(kinds)
    return kinds


def chosen_rounds(given: argparse.Namespace) -> list[tuple[int, str]]:
    """(number, kind) of the rounds to play."""
    cards = deck(given.seed)
    if given.round is not None:
        return [(given.round, cards[given.round % len(cards)])]
    numbers: list[int] = []
    number = 0
    while len(numbers) < given.rounds:
        if cards[number % len(cards)] in given.kinds:
            numbers.append(number)
        number += 1
    part, parts = map(int, given.part.split("/"))
    return [(number, cards[number % len(cards)]) for number in numbers[part - 1 :: parts] if number >= given.start]


def mix_in_words(kinds: Sequence[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items(), key=lambda one: -one[1]))


def total(verdicts: Sequence[Verdict], seconds: float) -> dict[str, float]:
    counts: dict[str, float] = {"rounds": len(verdicts)}
    for name in COUNTED:
        counts[name] = sum(len(getattr(verdict, name)) for verdict in verdicts)
    return counts | {"seconds": round(seconds)}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is started is ended by the way out
    sys.exit(main())
