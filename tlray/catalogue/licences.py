"""Licences of weights and of the code behind them: which of them bind whoever uses a model.

A licence binds unless it asks for no more than attribution. Whoever states none (torchvision for most of its weights)
binds nobody by a name that could be accepted; `tlray models` then shows none.
"""

ATTRIBUTION_ONLY = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense"}
NOT_STATED = {None, "", "unknown"}


def binds(licence: str | None) -> bool:
    """Whether it must be accepted by name: copyleft, non-commercial, or terms of the publisher's own."""
    return licence not in NOT_STATED and str(licence).lower() not in ATTRIBUTION_ONLY
