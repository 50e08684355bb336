"""What retraining has come to so far, beside champion.json: what was judged, and a run that is under way.

    state = load_state(home)
    save_state(home, state.with_judgement(judgement))

Only the holder of the lease writes it.
"""

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tlray import storage
from tlray.storage.sealed import read_document, write_document

FILE = "retrain.json"
NUM_KEPT = 100  # judgements

Verdict = Literal["first", "promoted", "refused"]


class Judgement(BaseModel):
    """Data and settings that a challenger was made from, and what became of it."""

    model_config = ConfigDict(frozen=True)

    listing: str  # of `list_data`
    fingerprint: str  # of the manifest
    settings: dict[str, Any]  # of `settings_of`
    run: str
    verdict: Verdict
    champion: int  # number of the champion afterwards
    time: float = Field(default_factory=time.time)


class Pending(BaseModel):
    """A run that was begun and not judged yet."""

    model_config = ConfigDict(frozen=True)

    listing: str
    settings: dict[str, Any]
    run: str


class State(BaseModel):
    """Judgements, the newest last."""

    model_config = ConfigDict(frozen=True)

    judged: tuple[Judgement, ...] = ()
    pending: Pending | None = None

    @property
    def last(self) -> Judgement | None:
        return self.judged[-1] if self.judged else None

    def of_listing(self, listing: str, settings: dict[str, Any]) -> Judgement | None:
        """The judgement of the same listing and settings, however long ago."""
        return next((one for one in self.judged if (one.listing, one.settings) == (listing, settings)), None)

    def of_contents(self, fingerprint: str, settings: dict[str, Any]) -> Judgement | None:
        """The judgement of the same images, wherever they lay, and the same settings."""
        return next((one for one in self.judged if (one.fingerprint, one.settings) == (fingerprint, settings)), None)

    def with_judgement(self, judgement: Judgement) -> "State":
        """Nothing is under way any more."""
        return State(judged=(*self.judged, judgement)[-NUM_KEPT:])

    def with_pending(self, pending: Pending | None) -> "State":
        return self.model_copy(update={"pending": pending})


def load_state(home: str) -> State:
    """Empty before the first retraining."""
    uri = storage.join(home, FILE)
    try:
        return State.model_validate(read_document(uri, "remove it, and the next retraining judges anew"))
    except storage.NotFoundError:
        return State()


def save_state(home: str, state: State) -> None:
    write_document(storage.join(home, FILE), state.model_dump(mode="json"))
