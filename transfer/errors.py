"""The errors of the data plane: what can go wrong when tensors are put, read or unpacked."""


class TransferError(Exception):
    """Anything that kept tensors from arriving; the message names the peer, slot or field."""


class SlotGone(TransferError):
    """The slot was released or reused, or belongs to another life of the peer."""


class Corrupt(TransferError):
    """What lies in the slot is not what its producer announced."""


class PeerUnreachable(TransferError):
    """No connection to the peer, or it ended during the read."""


class ReadTimeout(TransferError):
    """The deadline passed before the read was complete."""


class PoolFull(TransferError):
    """No room in the pool came free in time."""


class TooLarge(TransferError):
    """The pool could not hold this even if it were empty."""


class ManifestError(TransferError):
    """A value cannot travel, or a manifest does not describe its payload."""
