"""Class names as people mean them: one spelling of each, whatever a file system, a table or a label file writes.

class_name("rose ")                      # "rose"; NFD becomes NFC, so that both spellings of "café" are one class
alike(["rose", "Rose"])                  # a note for people on names that are nearly the same
matched("Rose ", ("Rose", "tulip"))      # the class of a model that a name means; None where it means none
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tlray.errors import DataError

# Not white space to Python, and seen by nobody: zero-width spaces and joiners, byte order marks, soft hyphens, marks of
# direction. They are dropped at both ends only, as scripts and emoji need some of them inside a name.
INVISIBLE = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what follows would be shown in another order
REFUSED = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and separators of lines and paragraphs
NUM_NAMED = 10


class ClassNameError(DataError):
    """The text is no name of a class; the message is the reason, in a few words."""


@lru_cache(maxsize=2**16)
def class_name(text: str) -> str:
    """The one spelling of a class: in Unicode's form NFC, without white space at both ends; raises ClassNameError."""
    name = _stripped(unicodedata.normalize("NFC", text))
    if not name:
        raise ClassNameError(f"{text!r} is no name of a class" if text else "an empty text is no name of a class")
    odd = next((char for char in name if unicodedata.category(char) in REFUSED or char in DIRECTIONS), None)
    if odd is not None:
        raise ClassNameError(f"the class name {name!r} has a control character, {odd!r}: rename it")
    return name


def alike(names: Iterable[str]) -> tuple[str, ...]:
    """A note on each group of names that differ only by case, width or the spaces inside them."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_folded(name)].append(name)
    twins = [sorted(group) for group in groups.values() if len(group) > 1]
    notes = [
        f"{', '.join(map(repr, group))} are {len(group)} classes, which differ only by case, width or spaces: "
        "give them one name if they are one class"
        for group in twins[:NUM_NAMED]
    ]
    more = [f"{len(twins) - NUM_NAMED} more such groups of classes"] if len(twins) > NUM_NAMED else []
    return (*notes, *more)


def matched(text: str, classes: Sequence[str]) -> str | None:
    """The class that `text` means: itself, or the only one of the same spelling, in models of earlier versions."""
    if text in classes:
        return text
    name = class_name(text)
    same = [known for known in classes if _same_spelling(known, name)]
    return same[0] if len(same) == 1 else None


def _same_spelling(known: str, name: str) -> bool:
    try:
        return class_name(known) == name
    except ClassNameError:
        return False


def _stripped(text: str) -> str:
    before = None
    while text != before:
        before, text = text, text.strip().strip(INVISIBLE)
    return text


def _folded(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.split())
