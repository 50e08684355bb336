"""A champion chosen by a person: `tlray promote`.

champion = promote_by_hand("s3://bucket/runs/birds/20260101-120000-ab12")
"""

import getpass

from tlray.errors import InputError
from tlray.runs.champion import Champion, promote, read_champion
from tlray.workflows.retrain.candidate import find_candidate


def promote_by_hand(target: str, into: str | None = None) -> Champion:
    """Make the best export of a run, or a bundle, the champion without a comparison.

    `into`: whose champion, `<storage>/<name>`; by default that of the run folder it lies in. InputError for a bundle of
    no run without it.
    """
    home, candidate = find_candidate(target)
    home = into or home
    if home is None:
        raise InputError(f"{candidate.export} lies in no run folder: say with --into CONFIG whose champion it becomes")
    held = read_champion(home)
    if held is not None and held.champion.export == candidate.export:
        raise InputError(f"{candidate.export} is champion {held.champion.number} already")
    return promote(home, candidate, held, by="hand", reason=f"promoted by hand by {_person()}")


def _person() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "somebody"
