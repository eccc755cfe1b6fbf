"""Benchmarks of edgekd itself: what `edgekd bench` measures and writes into docs/benchmarks."""
