"""The official folders of the benchmarks, and the users' own, read where they lie. NumPy only."""
