"""The floor beneath a tiny request: the least that the same libraries can do for it, beside Triptych."""
