"""Tiny models with random weights: ordinary diffusers folders of every family, for demos and tests."""
