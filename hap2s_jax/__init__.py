"""HAP2S: hard-aware point-to-set deep metric learning in JAX."""

__version__ = "0.1.0"
