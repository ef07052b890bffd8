"""The parts of `drill.py`, a module each."""
