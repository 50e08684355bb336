"""What a retraining came to, as retrain.json in its run folder keeps it; its report is made of nothing else.

save_record(record);  record = load_record(run_uri)
"""

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tlray import storage
from tlray.config import RetrainConfig
from tlray.runs.champion import Candidate, Champion
from tlray.storage.sealed import read_document, write_document
from tlray.workflows.retrain.drift import Drift
from tlray.workflows.retrain.images import Growth
from tlray.workflows.retrain.state import Verdict as Outcome
from tlray.workflows.retrain.verdict import Verdict

FILE = "retrain.json"


class Record(BaseModel):
    """Written before the promotion, so that one that was killed in between judges nothing twice."""

    model_config = ConfigDict(frozen=True)

    name: str
    run: str
    cause: str  # what had changed
    champion: Champion | None  # the one that the challenger was judged against; None before the first
    challenger: Candidate
    outcome: Outcome
    verdict: Verdict | None  # None before the first champion
    left_out: int  # test images that one of the two has learned from
    num_images: dict[str, int]  # by split
    growth: Growth | None  # None where it is not known what the champion comes from
    drift: Drift | str | None  # or why it is not known
    prefix_images_computed: int  # images through frozen blocks, of all trials together
    seconds: float  # from the retraining's last start to the verdict
    settings: RetrainConfig
    warm_start: bool  # whether the search began with the champion's configuration
    time: float = Field(default_factory=time.time)

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.verdict.reasons if self.verdict is not None else ("there was no champion before",)

    @property
    def promoted(self) -> bool:
        return self.outcome != "refused"


def save_record(record: Record) -> None:
    write_document(_uri(record.run), record.model_dump(mode="json"))


def load_record(run_uri: str) -> Record | None:
    """None for a run that was not judged yet; DamagedError."""
    try:
        document = read_document(_uri(run_uri), "remove it, and the next retraining judges the run again")
    except storage.NotFoundError:
        return None
    return Record.model_validate(document)


def message(record: Record, champion_number: int, report_uri: str) -> dict[str, Any]:
    """What the webhook is told."""
    verdict = record.verdict
    return {
        "event": {"first": "promoted", "promoted": "promoted", "refused": "refused"}[record.outcome],
        "name": record.name,
        "champion": champion_number,
        "run": record.run,
        "export": record.challenger.export,
        "backbone": record.challenger.backbone,
        "strategy": record.challenger.strategy,
        "cause": record.cause,
        "reasons": list(record.reasons),
        "num_test_images": verdict.num_images if verdict is not None else None,
        "challenger_accuracy": verdict.challenger_accuracy if verdict is not None else None,
        "champion_accuracy": verdict.champion_accuracy if verdict is not None else None,
        "p_value": verdict.p_value if verdict is not None else None,
        "report": report_uri,
    }


def _uri(run_uri: str) -> str:
    return storage.join(run_uri, FILE)
