"""Three stages behind HTTP: Triptych beside systems that people would use instead, in one run."""
