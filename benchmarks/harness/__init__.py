"""Shared code of the benchmarks: inputs, measured libraries, timing, rounds, result files and pictures."""
