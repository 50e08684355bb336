"""What activations depend on besides the image: equal keys, equal activations.

    key = ActivationKey(backbone="timm/resnet10t.c3_in1k", options="{}", weights_hash="9f…", num_frozen=4, …)
    key.digest                                   # the name of its folder in the store

Neither label, split nor trial is part of it, so whoever asks for the same computation finds it done.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from tlray.storage.stores.folder import DIGEST_LENGTH


@dataclass(frozen=True, kw_only=True)
class ActivationKey:
    """One frozen computation. Written differently, the same JSON is the same key."""

    backbone: str  # id
    options: str  # of the model, JSON
    weights_hash: str  # of the prefix's tensors, sha256 in hexadecimal
    num_frozen: int  # blocks before the cut
    preprocessing: str  # JSON
    augmentation: str  # "none" for view 0
    view: int  # which augmented draw; 0 is the evaluation transform
    dtype: Literal["float16", "float32"]  # as stored
    precision: Literal["float32", "bfloat16", "float16"]  # as computed
    split_version: int  # of the code that computes the prefix
    pixels: str  # JSON: how a file becomes pixels before the preprocessing

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that all fields go into."""
        canonical = json.dumps(self.spec(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]

    def spec(self) -> dict[str, Any]:
        """All fields, JSON taken apart."""
        parsed = {name: json.loads(getattr(self, name)) for name in ("options", "preprocessing", "pixels")}
        return asdict(self) | parsed
