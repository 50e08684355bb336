"""Drawing one of several so that one choice more or less changes little: a round that is repeated resembles itself."""

import random
from collections.abc import Sequence
from typing import TypeVar

Choice = TypeVar("Choice")


def pick(rng: random.Random, choices: Sequence[Choice]) -> Choice:
    """By its place among all. How many states of a run are kept depends on the machine's speed."""
    return choices[int(rng.random() * len(choices))]
