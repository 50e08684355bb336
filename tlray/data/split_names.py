"""Which split a name means: train, val or test, in the words that people use for them.

split_named("Validation")                            # "val"
split_of_file("data/train-00000-of-00004.parquet")   # "train"
"""

import re

from tlray.data.images import Split

WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
WORD = "|".join(sorted(WORDS, key=len, reverse=True))
SUFFIX = "(?:[-_ ]?(?:set|data|images|split))?"  # training_set
FOLDER = re.compile(rf"({WORD}){SUFFIX}")
FILE = re.compile(rf"({WORD})(?:[-_.]?\d.*|{SUFFIX}(?:\..*)?)")


def split_named(text: str) -> Split | None:
    """The split that a folder's name or a value in a table means, in any case; None for another word."""
    found = FOLDER.fullmatch(text.strip().casefold())
    return WORDS[found[1]] if found else None


def split_of_file(path: str) -> Split | None:
    """The split that a container's or table's path says: a folder of it, or a name such as train-00000-of-00004."""
    *folders, base = path.split("/")
    for name in folders:
        if (split := split_named(name)) is not None:
            return split
    found = FILE.fullmatch(base.casefold())
    return WORDS[found[1]] if found else None
