"""Engines: the ways in which bytes get from a peer's slot into one of ours."""
