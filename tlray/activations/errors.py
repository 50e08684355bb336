"""What can go wrong with stored activations.

TlrayError
└── ActivationError           activations that cannot be stored or are not there
    └── DamagedShardError         stored ones that are no longer what was written
"""

from tlray.errors import TlrayError


class ActivationError(TlrayError):
    pass


class DamagedShardError(ActivationError):
    """The shard has been taken out of the index: whoever asks next what is missing is told so."""

    may_pass = True
