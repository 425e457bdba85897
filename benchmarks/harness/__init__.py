"""What the benchmarks share: inputs, libraries to measure, timing, rounds, result files and pictures."""
