"""What every part of the configuration is: frozen, closed to keys that it does not know, strict about its values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

# true is no number, "3" neither, and 1 is not true. Every whole number has an upper bound beside its lower one: one
# that fits what it is for, not what a machine has.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Location = Annotated[str, Field(min_length=1)]  # a path or URI

MOST_SEED = 2**63 - 1  # NumPy, torch and JSON's readers agree up to here
MOST_ENTRIES = 1000  # of a list or mapping
MOST_TRIALS = 100_000
MOST_EPOCHS = 100_000
MOST_BATCH = 65_536
MOST_INPUT = 4096  # pixels of a side
MOST_GB = 1e9
MOST_RESOURCES = 1e9  # of one kind, for one worker or node


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
