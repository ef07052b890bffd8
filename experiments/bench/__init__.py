"""The two sides that the benchmarks and `accelerator.py` compare."""
