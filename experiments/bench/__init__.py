"""What the benchmarks and `accelerator.py` compare."""
