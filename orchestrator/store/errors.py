"""What goes wrong with a job store."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be opened, read or written; the message names it."""
