"""Benchmarks: what the documentation claims, measured, with peers side by side in one run."""
