"""The floor beneath a request: the least that the same libraries can do for it, beside Triptych."""
