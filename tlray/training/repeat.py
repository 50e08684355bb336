"""A trial whose loss left the numbers in reduced precision begins again in float32, once; its row says so.

trial, note = as_it_trains(trial, folder_uri)        # in float32, and why, where it has begun again
begin_again(folder_uri, "bfloat16", reason)

trials/<trial_id>/repeated.json      why; what stands beside it was trained in float32
"""

from contextlib import suppress

from tlray import storage
from tlray.config import TrialConfig
from tlray.errors import DamagedError
from tlray.storage.sealed import read_document, write_document

FILE = "repeated.json"


def as_it_trains(trial: TrialConfig, folder_uri: str) -> tuple[TrialConfig, str | None]:
    """The trial in the precision that it has come to, and what its row says of that."""
    uri = storage.join(folder_uri, FILE)
    if not storage.exists(uri):
        return trial, None
    recipe = trial.recipe.model_copy(update={"precision": "float32"})
    try:
        note = read_document(uri, "")["note"]
    except DamagedError:  # that it is there says what matters
        note = "repeated in float32"
    return trial.model_copy(update={"recipe": recipe}), note


def begin_again(folder_uri: str, precision: str, reason: str) -> None:
    """Forget how far the trial was, then note that it goes on in float32: killed in between, it diverges once more."""
    storage.delete(storage.join(folder_uri, "progress.json"))
    with suppress(storage.NotFoundError):  # not even its first epoch ended
        for info in list(storage.list_files(folder_uri)):
            if info.uri.rpartition("/")[2].startswith("epoch-"):
                storage.delete(info.uri)
    note = f"repeated in float32: in {precision} it {reason}"
    write_document(storage.join(folder_uri, FILE), {"note": note})
