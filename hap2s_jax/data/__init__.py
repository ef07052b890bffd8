"""Data sets as labels, cameras and encoded images by index; the PK plan; splits by class. NumPy only.

TensorFlow is confined to `hap2s_jax.data.tf` and `hap2s_jax.data.builders`.
"""

from hap2s_jax.data.pk import PKPlan

__all__ = ["PKPlan"]
