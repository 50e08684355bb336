"""The names that weights go by in files: containers around them, prefixes before them, as training code leaves them.

    state, notes = unwrapped(torch.load(path, weights_only=True))          # out of {"epoch": 3, "state_dict": {...}}
    tensors, notes = stripped(state, expected)                             # "module.conv.weight" -> "conv.weight"

Where a file has both the weights as trained and their moving average (EMA), the average is taken, as timm does: it is
what such training evaluates and publishes. A prefix is dropped only where what is left fits the model better, so a
model whose own names begin with `encoder.` keeps them.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "backbone",
    "encoder",
    "student",
    "weights",
    "params",
    "shadow",
)
MOST_CONTAINERS = 4  # within each other
# what wrappers put into names, anywhere: torch.compile, FSDP, activation checkpointing
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
MODULE = re.compile(r"(?:^|(?<=\.))module\.")  # DataParallel, DistributedDataParallel; of a part of a model too
WORDS = (*AVERAGES, *CONTAINERS, "visual", "base_model", "feature_extractor", "trunk", "_model", "classifier_model")
PREFIX = re.compile(rf"(?:(?:{'|'.join(WORDS)})\.)+")
NUM_NAMED = 3


def unwrapped(content: Any) -> tuple[dict[str, torch.Tensor] | None, tuple[str, ...]]:
    """(the state dict that a file's containers hold, None where there is none; a note where there was a choice)."""
    found = _state_in(content, MOST_CONTAINERS)
    if found is None:
        return None, ()
    state, place, others = found
    if not others or not any(key in AVERAGES for key in place):
        return state, ()
    return state, (f"of {', '.join((*others, place[0]))} the weights in {place[0]} are taken, the moving average",)


def stripped(tensors: Mapping[str, Value], expected: Collection[str]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The tensors under the names that a model `expected`, as far as wrappers and prefixes explain the difference."""
    wanted = set(expected)
    best, best_score = dict(tensors), 0
    notes: tuple[str, ...] = ()
    for cleaned, removed in _without_wrappers(tensors):
        for prefix in sorted({"", *_prefixes(cleaned)}, key=_order):
            group = {name.removeprefix(prefix): value for name, value in cleaned.items() if name.startswith(prefix)}
            score = sum(name in wanted for name in group)
            if score > best_score:
                best, best_score = group, score
                notes = _notes(removed, prefix, [name for name in cleaned if not name.startswith(prefix)])
    return best, notes


def _state_in(content: Any, depth: int) -> tuple[dict[str, torch.Tensor], tuple[str, ...], tuple[str, ...]] | None:
    """(state dict, the containers that it lies in, the other containers beside the first of them)."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        return dict(content), (), ()
    if depth == 0:
        return None
    inner = [key for key in (*AVERAGES, *CONTAINERS) if isinstance(content.get(key), Mapping)]
    for key in inner:
        found = _state_in(content[key], depth - 1)
        if found is not None:
            return found[0], (key, *found[1]), tuple(other for other in inner if other != key) or found[2]
    return None


def _without_wrappers(tensors: Mapping[str, Value]) -> list[tuple[dict[str, Value], str]]:
    """The names as they are, and without what wrappers put into them, each with what was removed."""
    found: list[tuple[dict[str, Value], str]] = [(dict(tensors), "")]
    for patterns, removed in (((WRAPPERS,), "compile and sharding"), ((WRAPPERS, MODULE), "parallel training")):
        names = list(tensors)
        for pattern in patterns:
            names = [pattern.sub("", name) for name in names]
        if names != list(tensors) and len(set(names)) == len(names):
            found.append((dict(zip(names, tensors.values(), strict=True)), removed))
    return found


def _prefixes(tensors: Mapping[str, Value]) -> set[str]:
    """Every way to take one or more of WORDS from the front of a name."""
    prefixes: set[str] = set()
    for name in tensors:
        match = PREFIX.match(name)
        parts = match[0].split(".")[:-1] if match else []
        prefixes.update("".join(f"{part}." for part in parts[: end + 1]) for end in range(len(parts)))
    return prefixes


def _order(prefix: str) -> tuple[bool, int, str]:
    """Averages first, then the shortest: of prefixes that fit alike the first one is taken."""
    return not any(word in AVERAGES for word in prefix.split(".")), len(prefix), prefix


def _notes(removed: str, prefix: str, others: list[str]) -> tuple[str, ...]:
    if not removed and not prefix:
        return ()
    parts = [f"the names' wrappers of {removed}" if removed else "", f"their prefix {prefix!r}" if prefix else ""]
    notes = [f"without {' and '.join(part for part in parts if part)} they fit"]
    if others:
        named = ", ".join(others[:NUM_NAMED]) + (", ..." if len(others) > NUM_NAMED else "")
        notes.append(f"{len(others)} tensors beside them are left out ({named})")
    return tuple(notes)
