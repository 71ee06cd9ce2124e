"""The scheduler: what a long queue and many instances cost it, and how near it keeps to the slowest stage."""
