"""The peers' side, each in an environment of its own, with nothing of Triptych in it."""
