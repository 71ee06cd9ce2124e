"""The figures of the benchmarks, drawn from the JSON lines of a run."""
